"""``locallearn bench WHAT``: finds what is to be measured."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from locallearn.errors import UsageError

WHAT = {
    "step": "training steps of K x G networks against a loop over groups and against backpropagation",
    "epoch": "whole epochs of training, data and metrics included, against the bandwidth of the memory",
    "memory": "activation memory and time by K, beside checkpointing and gradient accumulation",
    "distributed": "nodes on several processes against torch's pipelining and data parallelism",
    "hosts": "the same on several hosts by latency and bandwidth of the network between them",
    "many": "64 to 1,024 devices by simulation, local learning beside DDP, FSDP, 1F1B and DiLoCo",
    "read": "reading of packed images against a training step that needs them",
    "inference": "split networks against the end-to-end one",
    "model": "a model of your own in every way to train it: time, activation bytes, peak memory",
}
"""What can be measured; NAME stands in the module ``NAME_command`` beside this one."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if arguments[0] not in WHAT:
        raise UsageError(f"bench: {arguments[0]!r} is not known; expected {', '.join(WHAT)}")
    return importlib.import_module(f"locallearn.bench.{arguments[0]}_command").run(arguments[1:])


def _usage() -> str:
    lines = ["usage: locallearn bench WHAT [options]", "", "what:"]
    lines += [f"  {name:12} {what}" for name, what in WHAT.items()]
    return "\n".join([*lines, "", "locallearn bench WHAT --help tells its options."])
