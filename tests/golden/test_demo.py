"""The demo's promise: every method is above 97 % on the embedded digits, at more than one seed."""

import dataclasses

import pytest

from locallearn.recipes.named import recipe
from locallearn.training import runs


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("method", ["e2e", "dgl", "gn-dgl"])
def test_above_97_percent(method, seed, tmp_path):
    config = recipe(method)
    data = dataclasses.replace(config.data, validation=0.0)
    at_the_end = dataclasses.replace(config.train, evaluate_every=0)  # which changes nothing that is trained
    summary = runs.train(dataclasses.replace(config, seed=seed, data=data, train=at_the_end), tmp_path / "run")
    assert summary["accuracy"]["last_layer"] > 0.97
    assert summary["accuracy"]["ensemble"] > 0.97
