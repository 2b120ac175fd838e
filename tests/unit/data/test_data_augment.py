import colorsys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from locallearn import seeding
from locallearn.config import AugmentConfig
from locallearn.data import augment as module
from locallearn.data.augment import augment
from locallearn.errors import UsageError

NONE = AugmentConfig(crop_padding=0, padding_mode="constant", flip=0.0)


def _config(**changes):
    return AugmentConfig(**{"crop_padding": 0, "padding_mode": "constant", "flip": 0.0, **changes})


def _images(count=16, channels=3, height=8, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, height, width), generator=generator, dtype=torch.uint8)


def _slow(image, padding, mode, top, left, flipped):
    """One image [C, H, W] the plain way: pad, slice, flip."""
    height, width = image.shape[1:]
    padded = np.pad(image.numpy(), ((0, 0), (padding, padding), (padding, padding)), mode=mode)
    cut = padded[:, top : top + height, left : left + width]
    return torch.from_numpy((cut[..., ::-1] if flipped else cut).copy())


def _places(images, config, seed):
    """Every place where an image may have been cut; fails where one is no cut of its padded image at all."""
    found = augment(images, config, seed)
    places = []
    for image, result in zip(images, found, strict=True):
        corners = range(2 * config.crop_padding + 1)
        fits = [
            (top, left, flipped)
            for top in corners
            for left in corners
            for flipped in (False, True)
            if torch.equal(
                _slow(image, config.crop_padding, config.padding_mode, top, left, flipped).float() / 255, result
            )
        ]
        assert len(fits) >= 1, "not a cut of the padded image"
        places.append(fits)
    return places


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 5),
    channels=st.sampled_from([1, 3]),
    height=st.integers(5, 9),
    width=st.integers(5, 9),
    padding=st.integers(0, 4),
    mode=st.sampled_from(["reflect", "constant"]),
    flip=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_image_is_a_cut_of_its_padded_image(count, channels, height, width, padding, mode, flip, seed):
    images = _images(count, channels, height, width, seed % 1000)
    places = _places(images, _config(crop_padding=padding, padding_mode=mode, flip=flip), seed)
    if flip != 0.5:
        # Black corners and small images can look alike from two places.
        assert all(flip in {flipped for _, _, flipped in fits} for fits in places)


@pytest.mark.parametrize("mode", ["reflect", "constant"])
def test_crops_equal_the_slow_loop_at_the_drawn_places(mode):
    images, seed, padding = _images(32), 7, 3
    top, left = torch.randint(0, 2 * padding + 1, (2, 32), generator=seeding.generator(seed, "crop")).tolist()
    flipped = (torch.rand(32, generator=seeding.generator(seed, "flip")) < 0.5).tolist()
    slow = [_slow(images[i], padding, mode, top[i], left[i], flipped[i]) for i in range(32)]
    found = augment(images, _config(crop_padding=padding, padding_mode=mode, flip=0.5), seed)
    assert torch.equal(found, torch.stack(slow).float() / 255)


def test_padding_that_repeats_the_edge_would_be_seen(monkeypatch):
    """The planted error: clamp instead of reflect."""
    monkeypatch.setattr(module, "mirror", lambda position, size: position.clamp(0, size - 1))
    with pytest.raises(AssertionError, match="not a cut"):
        _places(_images(), _config(crop_padding=2, padding_mode="reflect"), 0)


def test_black_padding_left_out_would_be_seen(monkeypatch):
    monkeypatch.setattr(module, "inside", lambda position, size: torch.ones_like(position, dtype=torch.bool))
    with pytest.raises(AssertionError, match="not a cut"):
        _places(_images(), _config(crop_padding=2), 0)


def test_places_and_flips_are_drawn_evenly_per_image():
    images = _images(1, height=6, width=6).expand(1800, -1, -1, -1)
    fits = _places(images, _config(crop_padding=1, padding_mode="constant", flip=0.25), 3)
    assert {len(places) for places in fits} == {1}
    places = [places[0] for places in fits]
    counts = np.bincount([top * 3 + left for top, left, _ in places], minlength=9)
    assert counts.min() > 150  # 200 expected, standard deviation 13
    assert counts.max() < 250
    assert sum(flipped for _, _, flipped in places) == pytest.approx(450, abs=75)  # four standard deviations


def test_equal_seeds_give_equal_images_and_others_do_not():
    config = _config(crop_padding=2, flip=0.5, jitter=0.5, grey=0.3)
    images = _images()
    first = augment(images, config, 5)
    assert torch.equal(first, augment(images, config, 5))
    assert not torch.equal(first, augment(images, config, 6))


def test_global_generator_is_neither_used_nor_changed():
    config = _config(crop_padding=2, flip=0.5, jitter=0.8, grey=0.3)
    images = _images()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = augment(images, config, 5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(augment(images, config, 5), first)


def test_draws_from_the_global_generator_would_be_seen(monkeypatch):
    """The planted error: generators that are torch's own."""
    monkeypatch.setattr(seeding, "generator", lambda *keys: torch.default_generator)
    with pytest.raises(AssertionError):
        test_global_generator_is_neither_used_nor_changed()


@pytest.mark.parametrize("config", [NONE, _config(crop_padding=2, flip=0.5), _config(jitter=1.0, grey=0.5)])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_memory_is_channels_last_and_layout_changes_nothing(config, memory):
    images = _images()
    found = augment(images.contiguous(memory_format=memory), config, 1)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, augment(images, config, 1))
    assert 0 <= found.min() <= found.max() <= 1


def test_nothing_to_change_gives_the_pixels():
    images = _images()
    assert torch.equal(augment(images, NONE, 1), images.float() / 255)


def test_float_images_are_taken_as_they_are_and_kept():
    images = (_images().float() / 255).contiguous(memory_format=torch.channels_last)  # what is not copied first
    kept = images.clone()
    for config in (NONE, _config(crop_padding=2, flip=0.5), _config(jitter=1.0, grey=0.5)):
        assert torch.equal(augment(images, config, 1), augment((images * 255).round().byte(), config, 1))
    assert torch.equal(images, kept)


def test_incomplete_settings_are_refused():
    with pytest.raises(UsageError, match="resolve_augment"):
        augment(_images(), AugmentConfig(), 0)


def test_brightness_has_a_factor_for_every_image():
    images = _images().clamp(max=150)  # so that nothing is cut off at 1
    found = augment(images, _config(jitter=1.0, brightness=0.5, contrast=0, saturation=0, hue=0), 2)
    factors = found.flatten(1).sum(1) / (images.float() / 255).flatten(1).sum(1)
    expected = (images.float() / 255) * factors.view(-1, 1, 1, 1)
    assert torch.allclose(found, expected, atol=2e-6)
    assert 0.5 <= factors.min() < 0.7
    assert 1.3 < factors.max() <= 1.5


def test_contrast_moves_pixels_from_their_mean():
    images = 100 + _images() // 8
    found = augment(images, _config(jitter=1.0, brightness=0, contrast=0.6, saturation=0, hue=0), 2)
    grey = (images.float() / 255 * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1)
    mean = grey.mean((1, 2)).view(-1, 1, 1, 1)
    ratio = (found - mean) / (images.float() / 255 - mean)
    factors = ratio.flatten(1).median(1).values
    assert torch.allclose(found, mean + (images.float() / 255 - mean) * factors.view(-1, 1, 1, 1), atol=1e-5)
    assert factors.std() > 0.1
    assert (factors - 1).abs().max() <= 0.6


def test_saturation_moves_pixels_from_their_grey():
    images = 100 + _images() // 8
    found = augment(images, _config(jitter=1.0, brightness=0, contrast=0, saturation=0.6, hue=0), 2)
    pixels = images.float() / 255
    grey = (pixels * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    factors = ((found - grey) / (pixels - grey)).flatten(1).median(1).values
    assert torch.allclose(found, grey + (pixels - grey) * factors.view(-1, 1, 1, 1), atol=1e-5)
    assert factors.std() > 0.1
    assert (factors - 1).abs().max() <= 0.6


def test_hue_turns_the_colour_circle_of_an_image():
    images = _images(6, height=4, width=4)
    found = augment(images, _config(jitter=1.0, brightness=0, contrast=0, saturation=0, hue=0.2), 2)
    turns = []
    for before, after in zip(images.double() / 255, found.double(), strict=True):
        hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in before.flatten(1).T.tolist()]
        seen = [colorsys.rgb_to_hsv(*pixel) for pixel in after.flatten(1).T.tolist()]
        moved = [(new[0] - old[0] + 0.5) % 1 - 0.5 for old, new in zip(hsv, seen, strict=True) if old[1] > 0.3]
        turns.append(moved[0])
        assert np.allclose(moved, moved[0], atol=1e-4)
        assert np.allclose([old[1:] for old in hsv], [new[1:] for new in seen], atol=1e-4)
    assert np.std(turns) > 0.02
    assert np.abs(turns).max() <= 0.2


def test_jitter_of_some_leaves_the_others_bit_for_bit():
    images = _images(400, height=4, width=4)
    plain = augment(images, _config(crop_padding=1, flip=0.5), 9)
    found = augment(images, _config(crop_padding=1, flip=0.5, jitter=0.3), 9)
    same = (found == plain).flatten(1).all(1)
    assert (~same).sum().item() == pytest.approx(120, abs=37)  # four standard deviations


def test_grey_images_have_three_equal_channels():
    images = _images(400, height=4, width=4)
    pixels = images.float() / 255
    found = augment(images, _config(grey=0.2), 9)
    luma = 0.299 * pixels[:, 0] + 0.587 * pixels[:, 1] + 0.114 * pixels[:, 2]
    changed = (found != pixels).flatten(1).any(1)
    assert torch.allclose(found[changed], luma[changed, None].expand(-1, 3, -1, -1), atol=1e-6)
    assert changed.sum().item() == pytest.approx(80, abs=32)


def test_the_order_of_colour_changes_is_drawn():
    images = _images(2)
    config = _config(jitter=1.0, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.0)
    orders = {tuple(torch.randperm(4, generator=_after_factors(seed)).tolist()) for seed in range(20)}
    assert len(orders) > 5
    assert not torch.equal(augment(images, config, 0), augment(images, config, 1))


def _after_factors(seed):
    generator = seeding.generator(seed, "colours")
    for _ in range(4):
        torch.empty(2).uniform_(generator=generator)
    return generator
