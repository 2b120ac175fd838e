"""Checks of a split network pass on what is right, and each fails on a planted fault."""

import os

import pytest
import torch
from torch import nn

import locallearn as ll
from locallearn.errors import ConfigError
from locallearn.training.verify_own import verify_own

BATCH = torch.rand(4, 6, generator=torch.Generator().manual_seed(0)), torch.arange(4)


class Scale(nn.Module):
    """Multiplies by what a function of no argument gives."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor()


def constant():
    return 2.0


def drawn():
    """From where no seed reaches."""
    return int.from_bytes(os.urandom(2)) / 2**16


def processes():
    return float(os.environ.get("WORLD_SIZE", "1"))


def made(factor=constant, objective=None):
    model = nn.Sequential(
        nn.Linear(6, 8), nn.Dropout(0.2), nn.ReLU(), Scale(factor), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5)
    )
    return ll.split(model, cuts=["3"], example=BATCH, objective=objective), BATCH


def made_for_processes():
    return made(processes)


def nothing_learnt(scores, labels):
    return scores.sum() * 0


def test_all_is_well():
    checks = verify_own(made, ["threads"])
    assert [(check.passed, check.difference) for check in checks] == [(True, 0.0)] * 4


@pytest.mark.parametrize(
    ("faulty", "failing"),
    [
        (lambda: made(drawn), ["training is repeatable", "a saved run resumes exactly"]),
        (lambda: made(objective=nothing_learnt), ["no gradient crosses a boundary"]),
    ],
    ids=["draws for itself", "learns nothing"],
)
def test_a_fault_is_found(faulty, failing):
    assert [check.name for check in verify_own(faulty, []) if not check.passed] == failing


def test_a_process_that_computes_otherwise_is_found():
    checks = verify_own(made_for_processes, ["distributed"])
    assert [check.passed for check in checks] == [True, True, True, False]
    assert checks[-1].name == "processes train what one trains"
    assert checks[-1].difference > 0


def normed(factor=constant, dropout=0.0):
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(dropout), nn.ReLU(), Scale(factor), nn.Linear(8, 5)
    )
    return ll.split(model, cuts=["3"], example=BATCH), BATCH


def normed_for_processes():
    return normed(processes)


@pytest.mark.parametrize(("make", "passed"), [(normed, True), (normed_for_processes, False)])
def test_replicas_are_checked_up_to_rounding(make, passed):
    check = verify_own(make, [], replicas=2)[-1]
    assert (check.name, check.passed) == ("replicas train what one process trains", passed)
    assert (check.difference < 1e-5) == passed


def test_replicas_of_a_model_that_draws_cannot_be_checked():
    with pytest.raises(ConfigError, match="replicas: 2 is not valid; expected 1 with a model that draws in training"):
        verify_own(lambda: normed(dropout=0.5), [], replicas=2)
