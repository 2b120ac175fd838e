"""Models that leave layers out at random (LayerDrop, a block that is not called): a stage may miss a batch."""

import json
import math

import pytest
import torch
from torch import nn

import locallearn as ll

X, Y = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
DATA = [(X + step, Y) for step in range(4)]


class Skipping(nn.Module):
    """Its middle layer is left out on some training batches, counted from 0."""

    def __init__(self, left_out=()):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.left_out, self.batches = left_out, 0

    def forward(self, x):
        x = self.a(x)
        if self.training:
            self.batches += 1
        if not self.training or self.batches - 1 not in self.left_out:
            x = self.b(x).relu()
        return self.c(x)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def network(left_out):
    torch.manual_seed(0)
    model = Skipping(left_out)
    found = ll.split(model, cuts=["b"], example=(X, Y), optimizer=sgd)
    model.batches = 0
    return found


def trained(left_out, run, **settings):
    """What the record has of the epoch, a row a stage."""
    ll.Trainer(network(left_out), optimizer=sgd, run=run, **settings).fit(DATA, epochs=1)
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return next(event["nodes"] for event in events if event["event"] == "train")


@pytest.mark.filterwarnings("ignore:b did not run on a batch")
@pytest.mark.parametrize("left_out", [(), (0,), (2,), (1, 3)])
def test_means_are_over_the_batches_that_a_stage_saw(left_out, tmp_path):
    rows = trained(left_out, tmp_path / "run")
    of = network(left_out)
    steps = [of.step(batch) for batch in DATA]
    seen = [step for number, step in enumerate(steps) if number not in left_out]
    for name in ("loss", "accuracy"):
        assert rows[0][name] == pytest.approx(sum(float(step[f"{name}/1"]) for step in seen) / len(seen))
        assert rows[1][name] == pytest.approx(sum(float(step[f"{name}/2"]) for step in steps) / 4)
    assert not any("loss/1" in steps[number] for number in left_out)


@pytest.mark.filterwarnings("ignore:b did not run on a batch")
def test_an_epoch_that_a_stage_has_not_seen_has_no_loss_of_it(tmp_path):
    rows = trained((0, 1, 2, 3), tmp_path / "run")
    assert math.isnan(rows[0]["loss"])
    assert rows[1]["loss"] > 0


@pytest.mark.filterwarnings("ignore:b did not run on a batch")
def test_a_loss_that_is_not_finite_is_laid_to_the_stage_that_has_it(tmp_path):
    broken = [(X, Y), (X * float("inf"), Y)]
    with pytest.raises(ll.LocalLearnError, match="the loss of module 2, group 1 became NaN or infinite at step 2"):
        ll.Trainer(network((0, 1)), optimizer=sgd, run=tmp_path / "run").fit(broken, epochs=1)


def test_stages_that_compute_apart_say_that_they_cannot_be_left_out():
    with pytest.raises(ll.LocalLearnError, match="b did not run on this batch.* trains with runtime inline, or with"):
        ll.Trainer(network((1,)), optimizer=sgd, runtime="threads").fit(DATA, epochs=1)
