"""Local processes that find each other, for tests."""

import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from locallearn.config import to_toml
from programs import Program

HERE = Path(__file__).parent


def of_rank(rank: int, count: int, port: int) -> dict[str, str]:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
    return {name: str(value) for name, value in names.items()}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def start(command: list[str], count: int) -> list[Program]:
    """``python COMMAND`` on ``count`` processes that find each other."""
    port = free_port()
    return [Program(command, of_rank(rank, count, port)) for rank in range(count)]


def finish(processes: Sequence[Program | subprocess.Popen[str]], seconds: float = 250) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of every process."""
    try:
        found = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, found, strict=True)]


def train_all(cases: dict, folder: Path, count: int) -> None:
    """Train every case (a configuration by name) on ``count`` processes, into ``folder/NAME``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, config in cases.items():
        (folder / f"{name}.toml").write_text(to_toml(config))
    for code, _, errors in finish(start([str(HERE / "worker.py"), str(folder)], count)):
        assert code == 0, errors
