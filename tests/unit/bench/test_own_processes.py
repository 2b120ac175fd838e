"""``bench distributed`` and ``hosts`` with a model of the user's own: what each way trains, and what is predicted."""

import dataclasses

import pytest
import torch

from locallearn.bench.crew import Crew
from locallearn.bench.own_jobs import OwnModel, own_cost
from locallearn.bench.own_trainers import build_own_trainer
from locallearn.bench.predicted import LinkSpeed, predict
from locallearn.bench.processes import CrewPlan, jobs_of
from locallearn.bench.step import Setting
from locallearn.bench.ways import Heads
from locallearn.cli.main import main
from locallearn.cli.named_models import Inputs
from locallearn.core.image_shape import ImageShape
from locallearn.costs.split_costs import WeightRead
from locallearn.errors import ConfigError
from locallearn.runtime.world import Alone

TIED = """
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down, self.drop = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8), nn.Dropout(P)

    def forward(self, x):
        return x + self.drop(self.down(F.gelu(self.up(self.norm(x)))))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.score = nn.Embedding(12, 8), nn.Linear(8, 12, bias=False)
        self.score.weight = self.embed.weight
        self.blocks = nn.Sequential(*(Block() for _ in range(4)))

    def forward(self, ids, labels=None):
        scores = self.score(self.blocks(self.embed(ids)))
        return {"loss": F.cross_entropy(scores.flatten(0, 1), labels.flatten()), "logits": scores}


def tied():
    torch.manual_seed(3)
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(12, (8, 5), generator=draw)
    return Model(), {"ids": ids, "labels": ids.flip(1).contiguous()}
"""


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """Modules with the model, without and with dropout, that processes find, too."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        for name, share in (("own_plain", 0.0), ("own_dropout", 0.5)):
            (folder / f"{name}.py").write_text(TIED.replace("P)", f"{share})"))
        yield {"plain": "own_plain:tied", "dropout": "own_dropout:tied"}


def plan(name, **changes):
    setting = Setting(ImageShape(3, 32, 10), 8, torch.device("cpu"), "fp32", 1, 1)
    own = OwnModel(name, Inputs(), 2, ("blocks.1",), Heads())
    given = {"cells": ((2, 1),), "peers": ("e2e", "1f1b", "gpipe", "ddp"), "own": own, **changes}
    return CrewPlan("own", 2, given.pop("cells"), ("auto",), given.pop("peers"), 4, 2, setting, 60.0, **given)


def alone(job, steps):
    """Losses of so many steps in this process."""
    trainer = build_own_trainer(job, job.own, Alone())
    found = []
    for _ in range(steps):
        trainer.step()
        found.append([float(loss.sum()) for loss in trainer.losses])
    return found


@pytest.fixture(scope="module")
def trained(names):
    """Losses of four steps by several processes, all started before the first is asked."""
    jobs = {name: jobs_of(plan(names[name]))["dgl K=2 G=1"] for name in ("plain", "dropout")}
    jobs |= {name: jobs_of(plan(names["plain"]))[name] for name in ("1f1b", "ddp")}
    crews = {name: Crew(name, job, 60.0) for name, job in jobs.items()}
    try:
        for crew in crews.values():
            crew.answers()
        yield {name: crew.ask("losses", 4) for name, crew in crews.items()}
    finally:
        for crew in crews.values():
            crew.close()


@pytest.mark.parametrize("name", ["plain", "dropout"])
def test_stages_in_processes_have_the_losses_of_inline(names, trained, name):
    first, second = trained[name]
    inline = alone(jobs_of(plan(names[name]))["dgl K=2 G=1 inline"], 4)
    assert [[*a, *b] for a, b in zip(first, second, strict=True)] == inline
    assert inline[3] != inline[0]


def test_pipelines_and_replicas_train_as_backpropagation_does(names, trained):
    """The tied weight is one in the pipeline, too: four steps apart it would not be."""
    whole = [losses[0] for losses in alone(jobs_of(plan(names["plain"]))["e2e"], 4)]
    piped = [losses[0] for losses in trained["1f1b"][1]]
    assert trained["1f1b"][0] == [[]] * 4  # the first stage has no loss
    torch.testing.assert_close(piped, whole, rtol=2e-5, atol=0)
    halves = [(a[0] + b[0]) / 2 for a, b in zip(*trained["ddp"], strict=True)]
    torch.testing.assert_close(halves, whole, rtol=2e-5, atol=0)
    local = alone(jobs_of(plan(names["plain"]))["dgl K=2 G=1 inline"], 4)
    assert abs(local[3][1] - whole[3]) > 1e-4  # which no gradient from stage 2 to stage 1 makes another


def test_who_is_measured_beside_the_processes(names):
    assert set(jobs_of(plan(names["plain"], peers=("1f1b",)))) == {"dgl K=2 G=1", "1f1b"}
    assert "dgl K=2 G=1 inline" in jobs_of(plan(names["plain"], peers=("e2e",)))


def test_predictions_know_what_stages_read(names):
    """Stage 2 reads the embedding, which stage 1 trains: 12 x 8 numbers of 4 bytes after every step."""
    jobs = jobs_of(plan(names["plain"]))
    own = jobs["1f1b"].own
    assert own is not None
    assert own_cost(own, "fp32").reads == (WeightRead(2, 1, 384, True),)
    free = LinkSpeed(2.0**40, 0.0)

    def seconds(name, link):
        return 8 / predict(jobs[name], [1.0, 1.0], 1.0, link)["predicted_images_per_second"]

    slow = LinkSpeed(192.0, 0.0)  # the weights take 2 s, of pipelines once in each direction and after all the rest
    assert seconds("dgl K=2 G=1", free) == pytest.approx(1.0)
    assert seconds("1f1b", free) == pytest.approx(1.25)
    features = 8 * 5 * 8 * 4 / 192
    assert seconds("dgl K=2 G=1", slow) == pytest.approx(features + 2.0)  # what is sent takes longer than a step
    assert seconds("1f1b", slow) > 2.0 + features
    assert seconds("ddp", free) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cells": ((1, 2),)}, "--depth"),
        ({"microbatches": 3}, "--microbatches: 3 is not valid; expected a divisor of"),
    ],
)
def test_what_does_not_fit_is_refused(names, changes, message):
    one = plan(names["plain"])
    with pytest.raises(ConfigError, match=message):
        jobs_of(dataclasses.replace(one, **changes))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--head", "shared"], "--head: 'shared' is not valid; expected none but with a --model of your own"),
        (["--model", "hf:gpt2", "--depth", "1", "--width", "2"], "1 with a model of your own"),
        (["--model", "hf:gpt2", "--microbatches", "3"], "a divisor of the 8 examples of a batch, at least 2"),
    ],
)
def test_options_that_do_not_fit_are_one_line(arguments, message, capsys):
    assert main(["bench", "distributed", *arguments]) == 2
    assert message in capsys.readouterr().err
