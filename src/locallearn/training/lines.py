"""What a training tells who watches it from a script or a notebook: a line an epoch."""

from __future__ import annotations

import sys
from typing import Any

from locallearn.config import RunConfig
from locallearn.errors import printable
from locallearn.training.observer import Observer, Quiet

_MOST = 8
"""Nodes whose losses one line shows; of more it shows the first and the last."""


class Lines:
    """An observer that writes lines to standard error: the start, an epoch's losses and scores, warnings."""

    def __init__(self) -> None:
        self._epochs = 0

    def on_start(self, config: RunConfig, steps_per_epoch: int, epochs: int, step: int) -> None:
        """What is trained."""
        self._epochs = epochs
        start = f", from step {step}" if step else ""
        self._say(f"{config.model}, K = {config.depth}, {epochs} epochs{start}")

    def on_step(self, step: int) -> None:
        """Nothing."""

    def on_event(self, event: dict[str, Any]) -> None:
        """A line after an epoch, and one after its evaluation."""
        if event["event"] == "train":
            losses = [f"{node['loss']:.3f}" for node in event["nodes"]]
            shown = " ".join(losses if len(losses) <= _MOST else [losses[0], "...", losses[-1]])
            speed = f"{event['images_per_second']:,.0f} examples/s"
            self._say(f"epoch {event['epoch']}/{self._epochs}: training loss of every node {shown}, {speed}")
        elif event["event"] == "evaluate":
            last = (event.get("nodes") or [{}])[-1]
            scores = [f"{name} {last[name]:.4g}" for name in ("loss", "accuracy") if last.get(name) is not None]
            if scores:
                self._say(f"epoch {event['epoch']}/{self._epochs}: evaluation of the last node {', '.join(scores)}")

    def on_warning(self, message: str) -> None:
        """A warning."""
        self._say(f"warning: {message}")

    def _say(self, text: str) -> None:
        print(printable(f"locallearn: {text}"), file=sys.stderr, flush=True)


def lines_if_watched() -> Observer:
    """Lines where somebody sees standard error while the program runs: on a terminal, or in a notebook."""
    return Lines() if sys.stderr.isatty() or "ipykernel" in sys.modules else Quiet()
