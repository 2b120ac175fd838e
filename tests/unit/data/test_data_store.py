import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from locallearn import seeding
from locallearn.config import AugmentConfig, DataConfig
from locallearn.data.augment import augment
from locallearn.data.datasets import Dataset, ImageSet, load
from locallearn.data.store import ImageStore
from locallearn.errors import ConfigError

FULL = AugmentConfig(crop_padding=2, padding_mode="reflect", flip=0.5, jitter=0.4, grey=0.2)


def _dataset(count=20, channels=3, size=8):
    """Image i is of the class i, and all its pixels are i; so that any mix-up of rows shows."""
    labels = torch.arange(count)
    images = labels.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, channels, size, size).contiguous()
    half = ImageSet(images, labels)
    mean, std = (0.1, 0.2, 0.3)[:channels], (0.5, 0.25, 0.125)[:channels]
    names = tuple(str(i) for i in range(count))
    return Dataset("fake", half, half, names, mean, std, AugmentConfig(crop_padding=1, flip=0.5), "made up")


def _random_dataset(count=20):
    dataset = _dataset(count)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, dataset.train.images.shape, generator=generator, dtype=torch.uint8)
    images = ImageSet(pixels, dataset.train.labels)
    return Dataset("fake", images, images, dataset.classes, dataset.mean, dataset.std, dataset.augment, "made up")


def _store(dataset=None, augment=FULL, seed=3, **options):
    dataset = dataset or _random_dataset()
    return ImageStore(dataset.train, dataset, augment, "cpu", seed, **options)


def _same(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.step == b.step
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.pixels, b.pixels)


@pytest.mark.parametrize(
    ("count", "batch_size", "steps"),
    [(20, 5, 4), (20, 6, 4), (20, 19, 1), (20, 20, 1), (20, 50, 1), (21, 4, 5), (22, 4, 6), (2, 2, 1), (1, 2, 0)],
)
def test_steps_keep_an_uneven_last_batch_but_no_single_image(count, batch_size, steps):
    store = _store(_dataset(count), None)
    assert store.steps(batch_size) == steps
    sizes = [len(batch.labels) for batch in store.epoch(0, batch_size)]
    assert len(sizes) == steps
    assert sum(sizes) == count - (count % batch_size == 1)
    assert [batch.step for batch in store.epoch(0, batch_size)] == list(range(steps))


def test_an_epoch_has_every_image_once_with_its_label():
    store = _store(_dataset(), None)
    batches = list(store.epoch(0, 6))
    labels = torch.cat([batch.labels for batch in batches])
    assert sorted(labels.tolist()) == list(range(20))
    assert labels.tolist() != list(range(20))
    for batch in batches:
        assert torch.equal(batch.pixels, (batch.labels.float() / 255).view(-1, 1, 1, 1).expand_as(batch.pixels))


def test_orders_differ_between_epochs_and_seeds():
    def order(seed, epoch):
        return torch.cat([batch.labels for batch in _store(seed=seed).epoch(epoch, 5)]).tolist()

    orders = [order(seed, epoch) for seed, epoch in itertools.product((0, 1), (0, 1, 2))]
    assert len({tuple(one) for one in orders}) == 6
    assert order(0, 2) == orders[2]


def test_images_are_normalised_pixels():
    for batch in (next(_store().epoch(0, 4)), next(_store().ordered(4))):
        for channel, (mean, std) in enumerate([(0.1, 0.5), (0.2, 0.25), (0.3, 0.125)]):
            expected = (batch.pixels[:, channel] - mean) / std
            assert torch.allclose(batch.images[:, channel], expected, atol=1e-6)
        assert 0 <= batch.pixels.min() <= batch.pixels.max() <= 1


def test_a_batch_is_what_augment_makes_of_its_images():
    dataset = _random_dataset()
    batches = list(_store(dataset).epoch(4, 6))
    order = torch.randperm(20, generator=seeding.generator(3, "order", 4))
    chosen = order[6:12]
    assert torch.equal(batches[1].labels, chosen)
    expected = augment(dataset.train.images[chosen], FULL, seeding.derive(3, "augment", 4, 1))
    assert torch.equal(batches[1].pixels, expected)


def test_equal_images_in_different_batches_get_different_draws():
    dataset = _random_dataset()
    alike = ImageSet(dataset.train.images[:1].expand(20, -1, -1, -1).contiguous(), dataset.train.labels)
    store = ImageStore(alike, dataset, FULL, "cpu", 0)
    batches = [batch.pixels for epoch in (0, 1) for batch in store.epoch(epoch, 10)]
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(batches, 2))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**63 - 1),
    epoch=st.integers(0, 1000),
    batch_size=st.integers(2, 25),
    data=st.data(),
)
def test_any_batch_can_be_made_again_on_its_own(seed, epoch, batch_size, data):
    store = _store(seed=seed)
    start = data.draw(st.integers(0, store.steps(batch_size)))
    whole = list(store.epoch(epoch, batch_size))
    torch.rand(start + 1)  # whatever else happens in between
    _same(_store(seed=seed).epoch(epoch, batch_size, start), whole[start:])


def test_a_running_generator_would_be_seen(monkeypatch):
    """The planted error: draws that continue from batch to batch instead of deriving from the step."""
    running = itertools.count()
    monkeypatch.setattr(seeding, "derive", lambda seed, *keys: next(running))
    monkeypatch.setattr(seeding, "generator", lambda *keys: torch.Generator().manual_seed(0))
    store = _store(augment=AugmentConfig(crop_padding=2, flip=0.5))
    changed = []

    def remember(images, config, seed):
        changed.append(seed)
        return images.float() + seed

    monkeypatch.setattr("locallearn.data.store.change", remember)
    whole = list(store.epoch(0, 5))
    assert changed == []  # images are made when they are asked for
    _same(whole, whole)
    assert changed == [0, 1, 2, 3]
    with pytest.raises(AssertionError):
        _same(store.epoch(0, 5, start=2), whole[2:])


def test_global_generator_plays_no_part():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = list(_store().epoch(0, 6))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    _same(_store().epoch(0, 6), first)


def test_ordered_keeps_order_and_every_image():
    dataset = _random_dataset(21)
    batches = list(_store(dataset).ordered(5))
    assert [len(batch.labels) for batch in batches] == [5, 5, 5, 5, 1]
    assert [batch.step for batch in batches] == [0, 1, 2, 3, 4]
    assert torch.equal(torch.cat([batch.labels for batch in batches]), dataset.train.labels)
    assert torch.equal(torch.cat([batch.pixels for batch in batches]), dataset.train.images.float() / 255)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("augment", [FULL, None])
def test_memory_format(channels_last, augment):
    store = _store(augment=augment, channels_last=channels_last)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    for batch in (*store.epoch(0, 6), *store.ordered(6)):
        assert batch.images.is_contiguous(memory_format=memory)
        assert batch.pixels.is_contiguous(memory_format=memory)
        assert batch.images.dtype == torch.float32
    _same(store.epoch(0, 6), _store(augment=augment, channels_last=not channels_last).epoch(0, 6))


def test_open_settings_are_filled_from_the_data_set():
    dataset = _random_dataset()
    filled = AugmentConfig(crop_padding=1, padding_mode="constant", flip=0.5)
    _same(_store(dataset, AugmentConfig()).epoch(0, 6), _store(dataset, filled).epoch(0, 6))
    with pytest.raises(ConfigError, match=r"augment\.crop_padding: 8"):
        _store(dataset, AugmentConfig(crop_padding=8))


def test_grey_images():
    dataset = load(DataConfig(train_limit=50))
    store = ImageStore(dataset.train, dataset, AugmentConfig(), "cpu", 0)
    batch = next(store.epoch(0, 50))
    assert batch.images.shape == (50, 1, 8, 8)
    back = batch.images * dataset.std[0] + dataset.mean[0]
    assert torch.allclose(back, batch.pixels, atol=1e-6)
    assert not torch.equal(batch.pixels, dataset.train.images[batch.labels].float() / 255)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_makes_the_same_batches_without_waiting():
    dataset = _random_dataset()
    expected = list(_store(dataset).epoch(0, 6))
    store = ImageStore(dataset.train, dataset, FULL, "cuda", 3)
    batches = store.epoch(0, 6)
    found = [next(batches)]  # what is set up once an epoch may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        found += list(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.labels.cpu(), b.labels)
        assert torch.allclose(a.pixels.cpu(), b.pixels, atol=1e-5)  # colours are computed, not only moved
