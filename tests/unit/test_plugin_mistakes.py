"""A mistake in a plugin is one line that names the file and what is wrong, before anything is written."""

import pytest

import small
from locallearn import plugins
from locallearn.cli.main import main
from locallearn.config import ObjectiveConfig
from locallearn.losses.objectives import objectives
from locallearn.nn.heads import heads
from locallearn.training.runs import train

PLUGIN = """
import torch
from torch import nn
import locallearn as ll
from locallearn.nn.heads import build_inner


class Head(nn.Module):
    def __init__(self, given):
        super().__init__()
        self.linear = nn.Linear(given.shape[0], given.outputs * given.groups + 1)
        self.groups, self.classes = given.groups, given.outputs
    def forward(self, x):
        out = self.linear(x.mean((2, 3)))[:, :-1]
        return torch.stack(out.chunk(self.groups, 1))


@ll.heads.register("odd-head")
def odd(given: ll.HeadInput):
    return Head(given)


class Flat(nn.Module):
    def __init__(self, given):
        super().__init__()
        self.linear = nn.Linear(given.shape[0], given.outputs)
    def forward(self, x):
        return self.linear(x.mean((2, 3)))  # [B, classes], no groups


@ll.heads.register("flat-head")
def flat(given: ll.HeadInput):
    return Flat(given)


class Raises(nn.Module):
    def forward(self, x):
        return x @ torch.zeros(3, 7)


@ll.heads.register("raising-head")
def raising(given: ll.HeadInput):
    return Raises()


class Base(ll.Objective):
    def __init__(self, head):
        super().__init__()
        self.head = head
    def logits(self, features):
        return self.head(features)


class Scalar(Base):
    def forward(self, features, batch):
        logits = self.head(features)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.repeat(len(logits)))
        return ll.LocalLoss(loss, {}, logits.detach())


@ll.objectives.register("scalar-loss")
def scalar(given: ll.ObjectiveInput):
    return Scalar(given.head(given.classes))


class Bare(Base):
    def forward(self, features, batch):
        return self.head(features).sum((1, 2))


@ll.objectives.register("bare-loss")
def bare(given: ll.ObjectiveInput):
    return Bare(given.head(given.classes))


class NoGrad(Base):
    def forward(self, features, batch):
        return ll.LocalLoss(self.head(features).sum((1, 2)).detach(), {}, None)


@ll.objectives.register("detached-loss")
def nograd(given: ll.ObjectiveInput):
    return NoGrad(given.head(given.classes))


class Typo(Base):
    def forward(self, features, batch):
        return ll.LocalLoss(self.haed(features).sum((1, 2)), {}, None)


@ll.objectives.register("typo-loss")
def typo(given: ll.ObjectiveInput):
    return Typo(given.head(given.classes))


@ll.heads.register("unbuilt-head")
def unbuilt(given: ll.HeadInput):
    return nn.Linear(3, given.classes)


@ll.heads.register("own-1c2f")
def own(given: ll.HeadInput):
    return build_inner("1c2f", given, given.shape)
"""

MISTAKES = {
    "--head odd-head": "head.linear.weight is [21, 8]; expected a first dimension that the 2 groups of the",
    "--head flat-head": "a head takes features and gives [2, images, outputs]",
    "--head raising-head": "RuntimeError: Expected size for first two dimensions",
    "--head unbuilt-head": "AttributeError: 'HeadInput' object has no attribute 'classes', line ",
    "--loss scalar-loss": "the loss's total is []; expected one value a group, [2]",
    "--loss bare-loss": "forward gives Tensor; expected ll.LocalLoss",
    "--loss detached-loss": "the loss's total has no gradient; expected one value a group, [2], not detached",
    "--loss typo-loss": "AttributeError: 'Typo' object has no attribute 'haed' (line ",
}


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """Its file; nothing of it is known to the tests after these."""
    path = tmp_path_factory.mktemp("plugin") / "mistaken_parts.py"
    path.write_text(PLUGIN)
    with plugins.scope(), heads.scope(), objectives.scope(), pytest.MonkeyPatch.context() as patch:
        patch.setenv(plugins.VARIABLE, "")
        yield path


@pytest.mark.parametrize("option", MISTAKES)
def test_a_mistake_of_a_plugin_is_one_line(option, plugin, tmp_path, capsys):
    call = ["train", "tiny-resnet-gn-dgl", "--plugin", str(plugin), *option.split(), "--run", str(tmp_path / "run")]
    assert main([*call, "--depth", "2", "--data.train-limit", "64", "--epochs", "1"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    (line,) = [line for line in lines if line.startswith("locallearn:")]
    assert f"{option.split()[1]!r} ({plugin}:" in line
    assert MISTAKES[option] in line
    assert not (tmp_path / "run").exists()


def test_right_parts_are_tried_and_the_run_is_what_it_was(plugin, tmp_path):
    """Trying a part draws nothing that the run would have drawn."""
    plugins.load([str(plugin)])
    heads = ("1c2f", "own-1c2f")
    configs = [small.config(objective=ObjectiveConfig(head=head)) for head in heads]
    first, second = (train(config, tmp_path / config.objective.head)["nodes"] for config in configs)
    assert first == second
