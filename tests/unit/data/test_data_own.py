import dataclasses
from dataclasses import dataclass

import pytest
import torch

import locallearn as ll
from locallearn.config import AugmentConfig, DataConfig, from_toml, to_toml
from locallearn.data.datasets import load
from locallearn.data.store import ImageStore
from locallearn.errors import ConfigError, UsageError
from small import config


@dataclass(frozen=True)
class Strength:
    by: float = 0.5


@pytest.fixture
def fade():
    given = []

    @ll.augmentations.register("fade", options=Strength)
    def build(wanted):
        given.append(wanted)
        return lambda pixels: pixels * wanted.options.by * torch.rand(())

    return given


def _batches(augment):
    dataset = load(DataConfig(train_limit=40))
    return list(ImageStore(dataset.train, dataset, augment, "cpu", 0).epoch(0, 16))


def test_it_comes_after_the_others_with_its_options_and_seeded_draws(fade):
    plain = _batches(AugmentConfig(crop_padding=1))
    faded = _batches(AugmentConfig(crop_padding=1, own="fade", own_options={"by": 0.25}))
    assert [(w.channels, w.height, w.width, w.options.by) for w in fade] == [(1, 8, 8, 0.25)]
    factors = [(b.pixels.sum() / a.pixels.sum()).item() for a, b in zip(plain, faded, strict=True)]
    assert len(set(factors)) == 3  # another draw for every batch
    for a, b, factor in zip(plain, faded, factors, strict=True):
        assert 0 < factor < 0.25
        assert torch.allclose(b.pixels, a.pixels * factor, atol=1e-6)
    torch.rand(3)
    for a, b in zip(
        faded, _batches(AugmentConfig(crop_padding=1, own="fade", own_options={"by": 0.25})), strict=True
    ):
        assert torch.equal(a.pixels, b.pixels)


def test_a_run_keeps_it_and_what_is_not_known_is_refused_before_it(fade, tmp_path):
    run = config(augment=AugmentConfig(own="fade", own_options=Strength(0.75)))
    assert from_toml(to_toml(run)) == run
    ll.train(run, tmp_path / "run")
    assert 'own = "fade"' in (tmp_path / "run/config.toml").read_text()
    assert fade[-1].options == Strength(0.75)
    with pytest.raises(ConfigError, match=r"augment\.own: 'fad' is not known. Did you mean fade"):
        ll.train(dataclasses.replace(run, augment=AugmentConfig(own="fad")), tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(ConfigError, match=r"augment\.own_options\.to: 1 is not valid"):
        AugmentConfig(own="fade", own_options={"to": 1})


def test_what_is_no_function_is_refused():
    ll.augmentations.add("wrong", lambda given: 3)
    try:
        with pytest.raises(UsageError, match="augment.own 'wrong' .* returned int; expected Callable"):
            _batches(AugmentConfig(own="wrong"))
    finally:
        ll.augmentations.remove("wrong")
