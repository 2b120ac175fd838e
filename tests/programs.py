"""Python programs in processes of their own that start fast: copies of one that has imported torch and the package.

What is tested about the start itself (imports, plugins that are found, a launcher that starts others) is started by
``subprocess`` instead.
"""

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from multiprocessing import forkserver
from pathlib import Path

_copies = multiprocessing.get_context("forkserver")
PRELOADED = [
    "torch._dynamo",
    "torch.utils.tensorboard",
    "locallearn.cli.train_command",
    "locallearn.report.html",
    "locallearn.training.runs",
    "locallearn.training.trainer",
    "transformers.modeling_utils",
]
HERE = Path(__file__).parent


def start() -> None:
    """Start the process that all others are copies of: those of the package's own, too, which would preload less."""
    _copies.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


def environment() -> dict[str, str]:
    path = [str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]  # for these tests' modules
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)}


class Program:
    """What is used here of ``subprocess.Popen``; the command is a file, ``-m`` a module or ``-c`` a text."""

    def __init__(self, command: list[str], variables: dict[str, str] | None = None, folder: Path | None = None):
        self._printed = tempfile.TemporaryDirectory()
        given = (command, environment() | (variables or {}), str(folder or Path.cwd()), self._printed.name)
        self._process = _copies.Process(target=_run, args=given)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What it printed and its errors, when it has ended."""
        self._process.join(timeout)
        if self.returncode is None:
            raise TimeoutError(f"process {self.pid} still runs after {timeout} seconds")
        printed, errors = (Path(self._printed.name, name).read_text() for name in ("1", "2"))
        return printed, errors


def run(*command: object, folder: Path, variables: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    program = Program([str(part) for part in command], variables, folder)
    printed, errors = program.communicate(300)
    return subprocess.CompletedProcess(command, program.returncode, printed, errors)


def _run(command: list[str], variables: dict[str, str], folder: str, printed: str) -> None:
    """What Python does with a command line, with its output in the files 1 and 2."""
    for descriptor in (1, 2):
        os.dup2(os.open(f"{printed}/{descriptor}", os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    sys.path[1:1] = variables["PYTHONPATH"].split(os.pathsep)
    kind, *rest = command
    sys.argv = command if kind not in ("-c", "-m") else [kind, *rest[1:]]
    if kind == "-c":
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif kind == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(kind, run_name="__main__")
