"""How long trainings will take: counted multiply-accumulates, scaled by what finished epochs took on this machine."""

from __future__ import annotations

import contextlib
import json
import statistics
from pathlib import Path

from locallearn.config import RunConfig, digest, from_toml
from locallearn.costs.nodes import cost
from locallearn.errors import ConfigError
from locallearn.files import write_atomically
from locallearn.thesis.matrix import IMAGES

TRAINING_IMAGES = {"cifar10": 50_000, "cifar100": 50_000, "imagenet32": 1_281_167, "digits": 1_437}
"""Training images of each data set."""


def epoch_seconds(run: Path) -> list[float]:
    """Seconds that each finished epoch of a run took, in order; none where there is no run."""
    path = run / "metrics.jsonl"
    seconds: dict[int, float] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):  # being written, or damaged
            event = json.loads(line)
            if event["event"] == "train":
                seconds[int(event["epoch"])] = float(event["seconds"])
    return [seconds[epoch] for epoch in sorted(seconds)]


class Estimates:
    """Times of trainings that have not ended yet.

    A run that has finished epochs goes on as fast as it did. One that has not is as fast for each multiply-accumulate
    of its steps as all runs in the folder together that have its precision. Counting takes a second for each
    configuration, so counts are kept in ``macs.json`` in that folder.

    Args:
        runs: folder with a folder for each study, with a run folder for each cell.
    """

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._file = runs / "macs.json"
        self._macs = _read(self._file)
        self._speeds = self._measure()

    def seconds_left(self, run: Path, config: RunConfig) -> float | None:
        """Time until the training of ``config`` in ``run`` ends [s]; None where nothing like it was trained here.

        Evaluation, probes and the start of a process are not counted.
        """
        done = epoch_seconds(run)
        left = max(0, config.train.epochs - len(done))
        if done:
            return left * statistics.median(done)
        speed = self._speeds.get(str(config.train.precision))
        return None if speed is None else left * self.epoch_macs(config) * speed

    def epoch_macs(self, config: RunConfig) -> int:
        """Multiply-accumulates of an epoch of ``config``, backward passes included."""
        name, whole = digest(config), TRAINING_IMAGES[config.data.name]
        if name not in self._macs:
            self._macs[name] = cost(config, IMAGES[config.data.name], batch_size=2).step_macs
            self._runs.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, json.dumps(self._macs, indent=1) + "\n")
        return self._macs[name] * min(config.data.train_limit or whole, whole)

    def _measure(self) -> dict[str, float]:
        """Seconds for a multiply-accumulate, by precision."""
        seconds: dict[str, float] = {}
        macs: dict[str, float] = {}
        for path in self._runs.glob("*/*/config.toml"):
            done = epoch_seconds(path.parent)
            if not done:
                continue
            try:
                config = from_toml(path.read_text(encoding="utf-8"))
            except (ConfigError, OSError, ValueError):  # of another version, or damaged
                continue
            if config.data.name not in TRAINING_IMAGES:
                continue
            precision = str(config.train.precision)
            seconds[precision] = seconds.get(precision, 0.0) + sum(done)
            macs[precision] = macs.get(precision, 0.0) + len(done) * self.epoch_macs(config)
        return {precision: seconds[precision] / macs[precision] for precision in seconds}


def _read(path: Path) -> dict[str, int]:
    """Counts that were kept; none where the file is missing or damaged, for they can be made again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    counts = found.items() if isinstance(found, dict) else ()
    return {name: count for name, count in counts if isinstance(count, int) and count > 0}
