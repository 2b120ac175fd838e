"""Run folders as a training leaves them, made of smooth curves so that every figure is known."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from locallearn.config import DataConfig, RunConfig, TrainConfig, digest, to_toml

MakeRun = Callable[..., Path]
STEPS = 12  # steps an epoch


def nodes_of(depth: int, groups: int) -> list[dict[str, Any]]:
    nodes = [{"module": k, "group": g} for k in range(1, depth + 1) for g in range(1, groups + 1)]
    return nodes + ([{"module": "classifier", "group": 1}] if groups > 1 else [])


def _skill(node: dict[str, Any], depth: int, epoch: int) -> float:
    """How well a node does, in [0, 1]: deeper is better, later is better, groups differ a little."""
    place = depth if node["module"] == "classifier" else node["module"]
    reach = 0.97 - 0.33 * 0.55 ** (place - 1) - 0.025 * (node["group"] - 1)
    return reach * (1 - 0.75 * math.exp(-epoch / 2.5)) + 0.004 * math.sin(3 * epoch + place)


def _train(nodes: list[dict[str, Any]], depth: int, epoch: int, epochs: int, rate: float) -> dict[str, Any]:
    measured = []
    for node in nodes:
        skill = _skill(node, depth, epoch)
        terms = {"cross_entropy": round(2.6 * (1.01 - skill), 6)}
        if len(nodes) > depth:
            terms["diversity"] = round(0.1 + 0.3 * math.exp(-epoch / 4), 6)
        loss = terms["cross_entropy"] + 0.5 * terms.get("diversity", 0)
        measured.append({**node, "loss": loss, "terms": terms, "accuracy": min(skill + 0.02, 1.0)})
    return {
        "event": "train",
        "epoch": epoch,
        "step": STEPS * epoch,
        "learning_rate": 0.05 * (1 + math.cos(math.pi * (epoch - 1) / epochs)),
        "seconds": 1437 / rate,
        "images_per_second": rate + 15 * math.sin(epoch),
        "nodes": measured,
    }


def _evaluate(nodes: list[dict[str, Any]], depth: int, epoch: int) -> dict[str, Any]:
    measured = [
        {**node, "accuracy": _skill(node, depth, epoch), "loss": 2.7 * (1.02 - _skill(node, depth, epoch))}
        for node in nodes
    ]
    last = max(_skill(node, depth, epoch) for node in nodes if node["module"] == depth)
    return {
        "event": "evaluate",
        "epoch": epoch,
        "step": STEPS * epoch,
        "last_layer": last - 0.01 * (len(nodes) > depth),
        "ensemble": last + 0.012 * (len(nodes) > 1),
        "nodes": measured,
    }


def _summary(config: RunConfig, events: list[dict[str, Any]], status: str) -> dict[str, Any]:
    evaluations = [event for event in events if event["event"] == "evaluate"]
    trained = [event for event in events if event["event"] == "train"]
    best = max(evaluations, key=lambda event: event["last_layer"])
    return {
        "status": status,
        "method": config.method,
        "model": config.model,
        "data": config.data.name,
        "data_source": "scikit-learn's embedded digits",
        "depth": config.depth,
        "width": list(config.groups),
        "seed": config.seed,
        "epochs": trained[-1]["epoch"],
        "steps": trained[-1]["step"],
        "digest": digest(config),
        "accuracy": {
            "last_layer": evaluations[-1]["last_layer"],
            "ensemble": evaluations[-1]["ensemble"],
            "best_last_layer": best["last_layer"],
            "best_epoch": best["epoch"],
        },
        "nodes": [
            {"module": node["module"], "group": node["group"], "accuracy": node["accuracy"]}
            for node in evaluations[-1]["nodes"]
        ],
        "images_per_second": trained[-1]["images_per_second"],
        "seconds": 1.1 * sum(event["seconds"] for event in trained),
        "memory": {"activation_bytes": 9_961_472 // config.depth, "peak_rss_bytes": 612_368_384},
        "parameters": 1_227_594 // config.groups[0],
        "hardware": {
            "device": "cpu",
            "cpu": "AMD EPYC 7B13",
            "cores": 2,
            "threads": 2,
            "memory_bytes": 8 << 30,
        },
        "versions": {"locallearn": "0.1.0", "torch": "2.13.0", "python": "3.11.15"},
        "commit": "3c116144d7ae",
    }


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Writes a run folder: ``make_run(name, depth=..., groups=..., done=..., status=..., **config)``."""

    def make(
        name: str = "run",
        *,
        depth: int = 1,
        groups: int = 1,
        epochs: int = 10,
        done: int | None = None,
        status: str | None = "finished",
        rate: float = 700.0,
        data: str = "digits",
        **settings: Any,
    ) -> Path:
        config = RunConfig(
            depth=depth, width=(groups,), train=TrainConfig(epochs=epochs), data=DataConfig(name=data), **settings
        )
        nodes = nodes_of(depth, groups)
        events: list[dict[str, Any]] = [{"event": "start", "time": "2026-11-22T19:00:00Z", "nodes": nodes}]
        for epoch in range(1, (epochs if done is None else done) + 1):
            events += [_train(nodes, depth, epoch, epochs, rate), _evaluate(nodes, depth, epoch)]
        path = tmp_path / name
        path.mkdir(parents=True)
        (path / "config.toml").write_text(to_toml(config))
        (path / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        if status is not None:
            (path / "summary.json").write_text(json.dumps(_summary(config, events, status)))
        return path

    return make


@pytest.fixture
def three_runs(make_run: MakeRun) -> list[Path]:
    """End to end; DGL with K = 4; and GN-DGL with K = 4, G = 2 that was killed in epoch 8."""
    killed = make_run("gn-dgl-k4-g2", method="gn-dgl", depth=4, groups=2, done=7, status=None, rate=980.0, seed=1)
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"event":"train","epoch":8,"step":96,"learn')
    return [make_run("e2e", method="e2e"), make_run("dgl-k4", method="dgl", depth=4, rate=850.0), killed]
