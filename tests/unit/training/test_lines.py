"""Who calls a Trainer on a terminal sees how it goes."""

import sys

import torch
from torch import nn

import locallearn as ll
from locallearn.training.lines import Lines

BATCH = (torch.rand(8, 6), torch.arange(8) % 3)


def fit(epochs=2):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    return ll.Trainer(ll.split(model, depth=2, example=BATCH)).fit([BATCH], epochs=epochs, validation=[BATCH])


def test_a_terminal_has_a_line_an_epoch(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    summary = fit()
    out, lines = (text.splitlines() for text in capsys.readouterr())
    assert out == []
    assert lines[0] == "locallearn: Sequential, K = 2, 2 epochs"
    assert [line.split(":")[1] for line in lines[1:]] == [" epoch 1/2"] * 2 + [" epoch 2/2"] * 2
    last = summary["nodes"][-1]
    assert f"evaluation of the last node loss {last['loss']:.4g}, accuracy {last['accuracy']:.4g}" in lines[-1]


def test_a_log_file_has_none(capsys):
    fit(1)
    assert capsys.readouterr().err == ""


def test_of_many_nodes_the_first_and_the_last_are_shown(capsys):
    lines = Lines()
    event = {"event": "train", "epoch": 1, "images_per_second": 5.0, "nodes": [{"loss": float(i)} for i in range(9)]}
    lines.on_event(event)
    assert "loss of every node 0.000 ... 8.000, 5 examples/s" in capsys.readouterr().err
    lines.on_event({**event, "nodes": event["nodes"][:2]})
    assert "loss of every node 0.000 1.000, 5 examples/s" in capsys.readouterr().err
