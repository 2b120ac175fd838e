"""Activation memory and time of a step, local learning beside the ways to save memory in backpropagation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.utils.checkpoint import checkpoint_sequential

from locallearn.bench.cells import HEAD, PARTS
from locallearn.bench.compiled import Compiled, compiled_backprop
from locallearn.bench.step import Contender, Setting, local, step_config
from locallearn.bench.timing import interleaved, ratio
from locallearn.core.local_step import autocast
from locallearn.data.store import Batch
from locallearn.nn.backbones import build_backbone
from locallearn.training.optim import build_optimizer


def bench_memory(
    model: str, depths: Sequence[int], width: int, setting: Setting, head: str = HEAD, compiled: bool = False
) -> list[dict[str, Any]]:
    """Peak activation bytes and time of a step, in turns with backpropagation.

    Args:
        model: backbone.
        depths: K of the local networks.
        width: G of the local networks.
        setting: batch, device, precision and repeats; with 0 repeats nothing is timed.
        head: the auxiliary heads of the local networks.
        compiled: whether torch's layers under torch.compile compete, too.

    Returns:
        A row for backpropagation, compiled or not, for checkpointing, for accumulation and for every K: ``name``,
        ``activation_bytes``, ``memory`` (over backpropagation's) and, where timed, ``time`` (over
        backpropagation's, median over turns) and ``spread``. Rows of local networks also have
        ``time_at_equal_memory``: the time of the fastest kind of backpropagation that keeps no more, over theirs;
        and ``memory_at_equal_time``: the bytes of the smallest kind that is no slower, over theirs (None: none is).
        That of the compiled one has ``warm_up_seconds``, ``graphs`` and ``recompiles``.
    """
    blocks = len(build_backbone(model, setting.image.channels, setting.image.size).blocks)
    segments = [n for n in PARTS if n <= blocks]
    contenders = {"backprop": backprop(model, setting)}
    if compiled:
        contenders["backprop, compiled"] = compiled_backprop(model, setting)
    contenders |= {f"checkpointing, {n} segments": backprop(model, setting, segments=n) for n in segments}
    contenders |= {f"accumulation, {n} micro-batches": backprop(model, setting, microbatches=n) for n in PARTS}
    peers = list(contenders)
    method = "dgl" if width == 1 else "gn-dgl"
    for depth in depths:
        config = step_config(model, method, depth, width, head)
        contenders[f"{method} K={depth} G={width}"] = local(config, setting)
    rows = {name: {"name": name, "activation_bytes": one.peak_bytes()} for name, one in contenders.items()}
    for row in rows.values():
        row["memory"] = row["activation_bytes"] / rows["backprop"]["activation_bytes"]
    if setting.repeats:
        times = interleaved({n: one.step for n, one in contenders.items()}, setting.repeats, setting.device)
        for name, row in rows.items():
            row |= {"time": ratio(times[name], times["backprop"]), "spread": times[name].spread}
        for name in rows.keys() - set(peers):
            rows[name] |= equal_terms(rows[name], [rows[peer] for peer in peers])
    for name, one in contenders.items():
        if isinstance(one, Compiled):
            rows[name] |= one.facts()
    return list(rows.values())


def equal_terms(row: dict[str, Any], peers: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The best of ``peers`` at no more memory, and at no more time, relative to ``row``."""
    times = [peer["time"] for peer in peers if peer["memory"] <= row["memory"]]
    memories = [peer["memory"] for peer in peers if peer["time"] <= row["time"]]
    return {
        "time_at_equal_memory": min(times) / row["time"] if times else None,
        "memory_at_equal_time": min(memories) / row["memory"] if memories else None,
    }


def backprop(model: str, setting: Setting, segments: int = 1, microbatches: int = 1) -> Contender:
    """Backpropagation, plain, with checkpointing of all segments but the last, or with gradient accumulation."""
    config = step_config(model, "e2e", 1, 1)
    network = setting.network(config)
    module = next(iter(network))
    optimizer = build_optimizer(config.optimizer, module.parameters(), module.groups)
    batch = setting.batch()
    parts = [
        Batch(images, labels, images, 0)
        for images, labels in zip(batch.images.chunk(microbatches), batch.labels.chunk(microbatches), strict=True)
    ]

    for part in parts:  # the checkpointing whose recomputed tensors a meter can see needs an input with a gradient
        part.images.requires_grad_(segments > 1)

    def step() -> None:
        optimizer.zero_grad()
        for part in parts:
            with autocast(part.images.device, setting.precision):
                if segments > 1:
                    features = checkpoint_sequential(module.blocks, segments, part.images, use_reentrant=True)
                else:
                    features = module(part.images)
                loss = module.objective(features, part).total.sum()
            (loss * (len(part.labels) / len(batch.labels))).backward()
            part.images.grad = None
        optimizer.step()

    return Contender(step, list(network.parameters()))
