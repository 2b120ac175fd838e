"""Two views of every image: resized crops, hue, and draws of their own."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kornia import enhance

from locallearn import seeding
from locallearn.config import AugmentConfig, DataConfig
from locallearn.data import augment as module
from locallearn.data.augment import augment, crop_boxes
from locallearn.data.datasets import Dataset, ImageSet, load, resolve_augment
from locallearn.data.store import ImageStore
from locallearn.errors import ConfigError

CROP = AugmentConfig(crop_padding=0, padding_mode="constant", flip=0.5, resized_crop=(0.08, 1.0))
FIG_A2 = AugmentConfig(
    crop_padding=0, padding_mode="constant", flip=0.5, resized_crop=(0.08, 1.0), jitter=0.8, grey=0.2
)


def images_of(count=12, size=16, channels=3, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, size, size), generator=draw, dtype=torch.uint8)


def cut_out_and_resized(images, seed, config=CROP):
    """One image after the other: cut out, then resized (with antialiasing, which enlarging does not need)."""
    count, _, height, width = images.shape
    flipped = torch.rand(count, 1, generator=seeding.generator(seed, "flip")) < config.flip
    out = []
    for image, box, mirror in zip(images, crop_boxes(config, count, height, width, seed), flipped, strict=True):
        top, left, h, w = box.tolist()
        part = image[None, :, top : top + h, left : left + w].float() / 255
        whole = F.interpolate(part, (height, width), mode="bilinear", align_corners=False, antialias=True)[0]
        out.append(whole.flip(-1) if mirror else whole)
    return torch.stack(out)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [8, 32])
def test_resized_crops_are_cut_out_and_resized(size, channels):
    images = images_of(64, size, channels)
    torch.testing.assert_close(augment(images, CROP, 5), cut_out_and_resized(images, 5), rtol=0, atol=1e-5)


def test_pixels_beyond_the_edge_of_a_crop_are_caught(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "clamp", lambda x, min=None, **_: x)
    with pytest.raises(AssertionError):
        test_resized_crops_are_cut_out_and_resized(32, 3)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 99))
def test_boxes_lie_in_the_image_and_have_the_area_asked_for(a, b, seed):
    config = AugmentConfig(resized_crop=(min(a, b), max(a, b)))
    top, left, height, width = crop_boxes(config, 200, 32, 32, seed).T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (height >= 1).all()
    assert (width >= 1).all()
    assert (top + height <= 32).all()
    assert (left + width <= 32).all()
    area = height * width
    whole = area == 1024
    slack = (height + width) / 2 + 1  # sides are rounded to whole pixels
    assert ((area >= min(a, b) * 1024 - slack) & (area <= max(a, b) * 1024 + slack) | whole).all()


def torchvision_boxes(count, draw):
    """RandomResizedCrop.get_params as torchvision has it, for 32x32 images."""
    boxes = []
    for _ in range(count):
        for _ in range(10):
            area = 1024 * torch.empty(1).uniform_(0.08, 1.0, generator=draw).item()
            low, high = math.log(3 / 4), math.log(4 / 3)
            ratio = math.exp(torch.empty(1).uniform_(low, high, generator=draw).item())
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= 32 and 0 < h <= 32:
                i = int(torch.randint(0, 32 - h + 1, (1,), generator=draw))
                boxes.append((i, int(torch.randint(0, 32 - w + 1, (1,), generator=draw)), h, w))
                break
        else:
            boxes.append((0, 0, 32, 32))
    return torch.tensor(boxes)


def test_boxes_are_spread_as_torchvisions_are():
    ours = crop_boxes(CROP, 6000, 32, 32, 1).float()
    theirs = torchvision_boxes(3000, torch.Generator().manual_seed(0)).float()
    for x, y in zip(ours.T, theirs.T, strict=True):  # top, left, height and width
        levels = torch.arange(33.0)
        steps = [(v[:, None] <= levels).float().mean(0) for v in (x, y)]
        assert (steps[0] - steps[1]).abs().max() < 0.04  # Kolmogorov and Smirnov, 1 % is 0.036


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.sampled_from([0.0, 0.1, 0.5]))
def test_hue_turns_as_kornias_does(seed, most):
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.rand(8, 3, 4, 4, generator=draw)
    pixels[0] = pixels[0, :1]  # grey
    pixels[1] = (pixels[1] > 0.5).float()  # pure colours, and ties of channels
    pixels[2] = 0
    turn = (torch.rand(8, generator=draw) * 2 - 1) * most
    expected = enhance.adjust_hue(pixels, turn * 2 * math.pi)
    torch.testing.assert_close(module._turn_hue(pixels, turn), expected, rtol=0, atol=5e-6)


def test_a_hue_that_turns_the_other_way_is_caught():
    pixels, turn = torch.rand(8, 3, 4, 4), torch.full((8,), 0.1)
    expected = enhance.adjust_hue(pixels, -turn * 2 * math.pi)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(module._turn_hue(pixels, turn), expected, rtol=0, atol=1e-2)


def store_of(views=2, config=FIG_A2, count=10):
    images = ImageSet(images_of(count), torch.arange(count))
    names = tuple(str(i) for i in range(count))
    dataset = Dataset("fake", images, images, names, (0.1,) * 3, (0.5,) * 3, AugmentConfig(), "made up")
    return ImageStore(images, dataset, config, "cpu", 3, views=views)


def test_a_batch_holds_the_first_views_and_then_the_second_ones():
    batches = list(store_of().epoch(4, 4))
    assert [len(b.images) for b in batches] == [8, 8, 4]
    for step, batch in enumerate(batches):
        n = len(batch.labels) // 2
        assert torch.equal(batch.labels[:n], batch.labels[n:])
        images = images_of(10)[batch.labels[:n]]
        for view, pixels in enumerate(batch.pixels.split(n), start=1):
            seed = seeding.derive(3, "augment", 4, step, "view", view)
            assert torch.equal(pixels, augment(images, FIG_A2, seed))
            assert torch.equal(batch.boxes[(view - 1) * n : view * n], crop_boxes(FIG_A2, n, 16, 16, seed))
        torch.testing.assert_close(batch.images, (batch.pixels - 0.1) / 0.5)
        assert not torch.equal(batch.boxes[:n], batch.boxes[n:])


def test_batches_can_be_made_again_and_an_epoch_goes_on_anywhere():
    state = torch.random.get_rng_state()
    whole, rest = list(store_of().epoch(2, 4)), list(store_of().epoch(2, 4, start=1))
    for a, b in zip(whole[1:], rest, strict=True):
        assert torch.equal(a.images, b.images)
        assert a.step == b.step
    other = next(store_of().epoch(3, 4))
    assert not torch.equal(whole[0].boxes, other.boxes)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_one_view_is_as_before():
    batch = next(store_of(views=1).epoch(0, 4))
    assert len(batch.images) == 4
    assert batch.boxes is None


def test_padding_gives_way_to_a_resized_crop():
    dataset = load(DataConfig())
    found = resolve_augment(AugmentConfig(resized_crop=(0.2, 1.0)), dataset)
    assert (found.crop_padding, found.resized_crop) == (0, (0.2, 1.0))
    with pytest.raises(ConfigError, match="augment.crop_padding: 2 .* 0 or nothing with augment.resized_crop"):
        resolve_augment(AugmentConfig(resized_crop=(0.2, 1.0), crop_padding=2), dataset)


@pytest.mark.parametrize("scale", [(0.0, 1.0), (0.5, 0.2), (0.5, 1.5), (0.5,)])
def test_a_wrong_crop_is_one_line(scale):
    with pytest.raises(ConfigError, match=r"augment.resized_crop: .* expected two numbers in \(0, 1\]"):
        AugmentConfig(resized_crop=scale)


def test_users_mean_and_std_normalise():
    dataset = load(DataConfig(mean=(0.25,), std=(2.0,)))
    assert (dataset.mean, dataset.std) == ((0.25,), (2.0,))
    with pytest.raises(ConfigError, match=r"data.mean: .* expected one number for each of the 1 channels"):
        load(DataConfig(mean=(0.1, 0.2)))
    with pytest.raises(ConfigError, match=r"data.std: .* expected finite numbers above 0"):
        DataConfig(std=(0.0,))
