"""What a training tells who watches it from a script or a notebook: a line an epoch."""

from __future__ import annotations

import sys
from typing import Any

from locallearn.config import RunConfig
from locallearn.errors import printable


def watched() -> bool:
    """Whether somebody sees standard error while the program runs: on a terminal, or in a notebook."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


class Lines:
    """An observer that writes lines to standard error: the start, an epoch's losses and scores, warnings."""

    def __init__(self) -> None:
        self._epochs = 0

    def on_start(self, config: RunConfig, steps_per_epoch: int, epochs: int, step: int) -> None:
        """What is trained."""
        self._epochs = epochs
        start = f", from step {step}" if step else ""
        self._say(f"{config.model} in {config.depth} stages, {epochs} epochs{start}")

    def on_step(self, step: int) -> None:
        """Nothing."""

    def on_event(self, event: dict[str, Any]) -> None:
        """A line after an epoch, and one after its evaluation."""
        if event["event"] == "train":
            losses = " ".join(f"{node['loss']:.3f}" for node in event["nodes"])
            speed = f"{event['images_per_second']:,.0f} examples/s"
            self._say(f"epoch {event['epoch']}/{self._epochs}: training loss of each stage {losses}, {speed}")
        elif event["event"] == "evaluate":
            last = event["nodes"][-1]
            scores = [f"{name} {last[name]:.4g}" for name in ("loss", "accuracy") if last.get(name) is not None]
            self._say(f"epoch {event['epoch']}/{self._epochs}: validation of the last stage {', '.join(scores)}")

    def on_warning(self, message: str) -> None:
        """A warning."""
        self._say(f"warning: {message}")

    def _say(self, text: str) -> None:
        print(printable(f"locallearn: {text}"), file=sys.stderr, flush=True)
