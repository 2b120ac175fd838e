"""The end of a run in one dictionary."""

from __future__ import annotations

import json
from typing import Any

import torch

from locallearn.config import RunConfig, digest
from locallearn.core.network import LocalNetwork
from locallearn.core.split_network import SplitNetwork
from locallearn.runtime.distributed import DistributedRuntime
from locallearn.runtime.inline import Runtime
from locallearn.runtime.world import Alone, ProcessWorld
from locallearn.training import provenance
from locallearn.training.evaluate import CLASSIFIER

_NOT_EVALUATED = {"epoch": None, "last_layer": None, "ensemble": None, "nodes": []}
"""Where there was nothing to evaluate on."""


def summarise(
    config: RunConfig, source: str, network: LocalNetwork, progress: dict[str, Any], step: int
) -> dict[str, Any]:
    """What summary.json holds: accuracy as fractions, time in seconds, memory in bytes."""
    last, best, commits = progress["last"] or _NOT_EVALUATED, progress["best"] or _NOT_EVALUATED, progress["commits"]
    seconds = progress["train_seconds"]
    return {
        "status": "finished",
        "method": config.method,
        "model": config.model,
        "data": config.data.name,
        "data_source": source,
        "depth": config.depth,
        "width": list(config.groups),
        "seed": config.seed,
        "epochs": config.train.epochs,
        "steps": step,
        "digest": digest(config),
        "accuracy": {
            "last_layer": last["last_layer"],
            "ensemble": last["ensemble"],
            "protocol": last.get("protocol", CLASSIFIER),
            "best_last_layer": best["last_layer"],
            "best_epoch": best["epoch"],
            **({"validation": last["validation"]} if "validation" in last else {}),
        },
        "nodes": last["nodes"],
        "images_per_second": progress["images"] / seconds,
        "seconds": seconds,
        "memory": memory(config, progress),
        "parameters": sum(p.numel() for p in network.parameters()),
        "deployed_parameters": _deployed(network),
        "hardware": provenance.hardware(str(config.train.device)),
        "versions": provenance.versions(),
        "commit": ", then ".join(commits) if all(commits) else None,
        **({"scorer": progress["scorer"]} if "scorer" in progress else {}),
    }


def _deployed(network: LocalNetwork) -> int:
    """Parameters of the network without auxiliary heads, as it is exported; of a user's own model, the model's."""
    if isinstance(network, SplitNetwork):
        return sum(p.numel() for p in network.model.parameters())
    stages = list(network)
    parts = [stage.blocks for stage in stages]
    parts += [stages[-1].objective.get_submodule("head")] if network.has_classifier else []
    return sum(p.numel() for part in parts for p in part.parameters())


def memory(config: RunConfig, progress: dict[str, Any]) -> dict[str, int]:
    """Activation bytes of the first step; peaks of this process, since its start."""
    memory = {"activation_bytes": progress["activation_bytes"], "peak_rss_bytes": provenance.peak_rss_bytes()}
    device = str(config.train.device)
    if device.startswith("cuda"):
        memory["peak_device_bytes"] = torch.cuda.max_memory_allocated(device)
    return memory


def processes_since(
    images: float,
    seconds: float,
    world: Alone | ProcessWorld,
    runtime: Runtime,
    config: RunConfig,
    progress: dict[str, Any],
) -> list[dict[str, Any]]:
    """On the leader of several processes, how each has fared since so many images and seconds; all call it."""
    if not isinstance(world, ProcessWorld) or not isinstance(runtime, DistributedRuntime):
        return []
    done = (progress["images"] - images) / config.mesh.data
    passed = progress["train_seconds"] - seconds
    row = {
        "process": world.rank,
        "nodes": world.names[world.rank],
        "waiting": runtime.waited / passed if passed else 0.0,
        "sent_bytes": runtime.sent_bytes,
        **memory(config, progress),
        "images_per_second": done / passed if passed else 0.0,
    }
    return [json.loads(text) for text in world.collect(json.dumps(row))]
