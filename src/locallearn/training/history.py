"""What a run was before its settings were changed: ``history.json``, which a resume with new settings writes.

Each entry is a configuration and the step until which it trained. It is written before the new ``config.toml``, so
that a kill between the two leaves a run that resumes as it was.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from locallearn.errors import CheckpointError, UsageError
from locallearn.files import check_readable, write_atomically


@dataclass(frozen=True)
class Earlier:
    """A configuration that trained until ``step``: its digest, and its settings as dictionaries."""

    step: int
    digest: str
    config: dict[str, Any]


class History:
    """The earlier configurations of a run, oldest first.

    Args:
        path: of ``history.json``; a run that was never changed has none.

    Raises:
        UsageError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            check_readable(path)
            values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
            self.entries = [Earlier(int(v["step"]), str(v["digest"]), dict(v["config"])) for v in values]
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise UsageError(f"{path} cannot be read: {error}") from None

    def check(self, checkpoint: Path, progress: dict[str, Any], digest: str) -> None:
        """Make sure that a configuration may go on from a checkpoint: it wrote it, or took over at just that step.

        Args:
            checkpoint: its path.
            progress: what it says of itself.
            digest: of the run's present configuration.

        Raises:
            CheckpointError: it belongs to another configuration.
        """
        written = progress["digest"]
        if written != digest and not self.led_to(progress["step"], written):
            raise CheckpointError(
                f"checkpoint {checkpoint} belongs to another configuration than config.toml beside it; put that "
                f"back, and change settings with: locallearn train --resume {self.path.parent} --epochs N, --lr R "
                "or --schedule NAME"
            )

    def led_to(self, step: int, digest: str) -> bool:
        """Whether the present configuration took over at this step from that of ``digest``."""
        return bool(self.entries) and (self.entries[-1].step, self.entries[-1].digest) == (step, digest)

    def note(self, step: int, digest: str, config: dict[str, Any]) -> None:
        """Remember the configuration that trained until ``step``; a later one takes its place from there on.

        Args:
            step: of the newest checkpoint.
            digest: that the checkpoint has.
            config: the settings that are about to be changed.
        """
        known = {entry.digest: entry.config for entry in self.entries}
        self._keep(step - 1, digest)
        self.entries.append(Earlier(step, digest, known.get(digest, config)))
        self._write()

    def rewind(self, step: int, digest: str) -> None:
        """Forget what a run that goes on from ``step`` with the configuration of ``digest`` has not been through."""
        before = list(self.entries)
        self._keep(step, digest)
        if self.entries != before:
            self._write()

    def told(self) -> list[dict[str, Any]]:
        """For the summary: until which step each earlier configuration trained."""
        return [{"until_step": entry.step, "digest": entry.digest} for entry in self.entries]

    def _keep(self, step: int, digest: str) -> None:
        """Keep the entries up to ``step``, without a last one that the same configuration follows."""
        self.entries = [entry for entry in self.entries if entry.step <= step]
        while self.entries and self.entries[-1].digest == digest:
            self.entries.pop()

    def _write(self) -> None:
        write_atomically(self.path, json.dumps([asdict(entry) for entry in self.entries], indent=2) + "\n")
