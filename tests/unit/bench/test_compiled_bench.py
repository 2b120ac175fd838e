"""Compiled backpropagation as an opponent trains what plain backpropagation does, and says what compiling took."""

import contextlib
import time

import pytest
import torch

from locallearn.bench.compiled import compiled_backprop
from locallearn.bench.group_loop import LoopNetwork
from locallearn.bench.step import Setting, step_config
from locallearn.cli.main import main
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.errors import UsageError

SETTING = Setting(ImageShape(3, 8, 10), 8, torch.device("cpu"), "fp32", 0)


def test_it_trains_what_backpropagation_does():
    config = step_config("resnet8", "e2e", 1, 1)
    plain = LoopNetwork(build_network(config, SETTING.image), config.objective, config.optimizer, "fp32")
    compiled = compiled_backprop("resnet8", SETTING, backend="aot_eager")  # traced alike, and no C++
    start = [p.detach().clone() for p in plain.parameters()]
    for _ in range(3):
        plain.step(SETTING.batch())
    for _ in range(2):  # the first step compiled it
        compiled.step()
    trained = list(zip(compiled.parameters, plain.parameters(), strict=True))
    assert all(torch.allclose(a, b, atol=1e-4) for a, b in trained)
    assert not all(torch.allclose(a, b, atol=1e-4) for a, b in zip(compiled.parameters, start, strict=True))
    assert 0 < compiled.peak_bytes() < 2**24
    facts = compiled.facts()
    assert facts["graphs"] >= 2
    assert facts["recompiles"] == 0
    assert facts["warm_up_seconds"] > 0


def test_it_is_left_when_its_time_is_over():
    with pytest.raises(UsageError, match=r"torch.compile: resnet8 was not compiled within 0\.001 s"):
        compiled_backprop("resnet8", SETTING, limit=0.001)


def test_an_end_of_time_that_something_swallows_is_one():
    def swallowing(graph, _inputs):
        with contextlib.suppress(BaseException):
            time.sleep(10)
        return graph.forward

    with pytest.raises(UsageError, match=r"torch.compile: resnet8 was not compiled within 0\.5 s"):
        compiled_backprop("resnet8", SETTING, limit=0.5, backend=swallowing)


def test_other_networks_are_one_line(capsys):
    assert main(["bench", "step", "--model", "vgg6a", "--depth", "2", "--width", "2", "--baselines", "compiled"]) == 2
    said = capsys.readouterr().err
    assert "a ResNet of basic blocks, with compiled backpropagation" in said
    assert said.count("\n") == 1
