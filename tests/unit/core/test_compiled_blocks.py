"""Stages of a user's model whose blocks are compiled: what they train, what is told, and what is refused."""

import copy
import shutil

import pytest
import torch
from torch import nn

import locallearn as ll
from locallearn.errors import ConfigError, UsageError
from locallearn.nn.repeated import repeated_blocks


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.blocks, self.last = (
            nn.Linear(6, 8),
            nn.ModuleList(Block() for _ in range(4)),
            nn.Linear(8, 3),
        )

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return self.last(x)


BATCH = (torch.randn(12, 6, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3)


def split(compile: bool | str = False, **cut):
    torch.manual_seed(0)
    return ll.split(Model(), example=BATCH, **(cut or {"depth": 2}), compile=compile)


def losses(network, steps=3):
    return [
        [loss.total.item() for loss in network.walk(network.steps, network.given_batch(BATCH))] for _ in range(steps)
    ]


def test_they_train_what_blocks_as_they_are_do(capsys):
    torch.compiler.reset()
    plain, compiled = split(), split("aot_eager")
    assert losses(compiled) == losses(plain)
    assert losses(compiled)[0] != losses(compiled)[1]
    told = compiled.compiled
    assert told is not None
    assert told.paths == ["blocks.0", "blocks.1", "blocks.2", "blocks.3"]
    assert told.graphs >= 1
    assert told.recompiles == 0
    said = capsys.readouterr().err
    assert said.startswith(f"locallearn: 4 blocks compiled to {told.graphs} graphs in a first step of ")
    assert said.count("\n") == 1
    assert all("forward" not in module.__dict__ for module in compiled.model.modules())
    assert plain.compiled is None


def test_a_batch_of_another_size_is_compiled_again_and_counted():
    torch.compiler.reset()
    network = split("aot_eager")
    network.step(BATCH)
    other = copy.deepcopy(network)
    network.step(tuple(x[:5] for x in BATCH))
    told = network.compiled
    assert told is not None
    assert told.recompiles > 0
    assert other.compiled is not None
    assert other.compiled.warm_up is None
    other.step(BATCH)
    assert type(network.merge()) is Model


def test_what_cannot_be_compiled_is_one_line(monkeypatch):
    with pytest.raises(
        ConfigError, match="compile: True is not valid; expected False for a model that repeats no block"
    ):
        ll.split(
            nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), example=BATCH, depth=2, compile=True
        )
    with pytest.raises(ConfigError, match="False with stages on threads"):
        split("aot_eager").run_apart()
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UsageError, match=r"compile: True needs a C\+\+ compiler"):
        split(True)


def test_blocks_are_what_a_model_repeats():
    assert list(repeated_blocks(Model())) == ["blocks.0", "blocks.1", "blocks.2", "blocks.3"]
    nested = nn.Sequential(nn.Sequential(Block(), Block()), nn.Sequential(Block(), Block()), nn.Linear(8, 3))
    assert list(repeated_blocks(nn.ModuleDict({"net": nested}))) == ["net.0.0", "net.0.1", "net.1.0", "net.1.1"]
    assert repeated_blocks(nn.Sequential(nn.Linear(2, 2), nn.ReLU())) == {}
