"""Recipes made of others: what is theirs, and that each learns the digits."""

import dataclasses

import pytest

from locallearn.config import DataConfig
from locallearn.recipes.named import recipe
from locallearn.recipes.newer import VARIANTS
from locallearn.training.runs import train


def test_variants_are_recipes_with_a_head_or_a_loss():
    base, config = recipe("resnet32-dgl"), recipe("resnet32-auglocal")
    assert config.objective.head == "auglocal"
    assert dataclasses.replace(config, objective=base.objective) == base
    assert recipe("resnet32-gn-auglocal").method == "gn-dgl"
    assert recipe("resnet32-scpl").objective.loss == "supervised-contrastive"
    assert recipe("vgg6a-auglocal").objective.loss is None  # where DGL's recipe has predsim
    layerwise = recipe("resnet32-mono-forward")
    assert (layerwise.depth, layerwise.cuts, layerwise.objective.head) == (16, ("layerwise",), "flat")


WEAK = {"drtp": 0.25}
"""What a baseline reaches at least where others have 0.6; chance is 0.1."""


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_learns_digits(name, tmp_path):
    config = recipe(name)
    config = dataclasses.replace(
        config,
        data=DataConfig(),
        model="tiny-resnet",
        depth=min(config.depth, 2 if config.cuts == ("auto",) else 4),
        schedule=dataclasses.replace(config.schedule, warmup_epochs=1),
        train=dataclasses.replace(config.train, epochs=6, threads=1, evaluate_every=0),
    )
    assert train(config, tmp_path / "run")["accuracy"]["last_layer"] > WEAK.get(name, 0.6)
