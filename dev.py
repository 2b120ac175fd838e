#!/usr/bin/env python3
"""Set up a virtual environment beside this file and run a command in it; needs only Python 3.11 or later.

python3 dev.py demo [options]     the main job: train on the embedded digits, compare, write a report
python3 dev.py test [options]     lint, types, layers and all tests (options go to pytest)
python3 dev.py check              lint, types and layers only
python3 dev.py COMMAND [options]  any other command of locallearn, for example: dev.py train gn-dgl
"""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
TORCH = "2.13.0"


def call(*command: str | Path) -> int:
    """Run a command in the project's folder and return its exit code."""
    return subprocess.call([str(part) for part in command], cwd=ROOT)


def must(*command: str | Path) -> None:
    """Run a command and stop where it fails."""
    code = call(*command)
    if code:
        sys.exit(f"dev.py: failed with exit code {code}: {' '.join(str(part) for part in command)}")


def has_gpu() -> bool:
    """Whether an NVIDIA GPU answers."""
    return bool(shutil.which("nvidia-smi")) and subprocess.call(["nvidia-smi", "-L"], stdout=subprocess.DEVNULL) == 0


def pip_installs(*arguments: str) -> bool:
    """Whether pip could install this (quietly: a failure here is an answer, not an error)."""
    command = [str(PYTHON), "-m", "pip", "install", "-q", *arguments]
    return subprocess.call(command, cwd=ROOT, stderr=subprocess.DEVNULL) == 0


def install_torch() -> None:
    """Install torch first, so that nothing else pulls a larger build: the CPU build where there is no GPU."""
    if subprocess.call([str(PYTHON), "-c", "import torch"], stderr=subprocess.DEVNULL) == 0:
        return
    if not has_gpu():
        if pip_installs(f"torch=={TORCH}+cpu"):
            return
        uv = [str(PYTHON), "-m", "uv", "pip", "install", "-q", "--python", str(PYTHON), "--torch-backend=cpu"]
        if pip_installs("uv") and subprocess.call([*uv, f"torch=={TORCH}"], stderr=subprocess.DEVNULL) == 0:
            return
        print("dev.py: no CPU build of torch found, installing the default one", flush=True)
    must(PYTHON, "-m", "pip", "install", f"torch=={TORCH}")


def set_up(extra: str) -> None:
    """Make the environment, unless it is as this project wants it already."""
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + (ROOT / "constraints.txt").read_bytes())
    stamp = VENV / f"locallearn-{extra or 'base'}.stamp"
    if PYTHON.exists() and stamp.exists() and stamp.read_text() == wanted.hexdigest():
        return
    print(f"dev.py: setting up {VENV} (once; some minutes)", flush=True)
    if not PYTHON.exists():
        must(sys.executable, "-m", "venv", VENV)
    install_torch()
    target = f".[{extra}]" if extra else "."
    must(PYTHON, "-m", "pip", "install", "-q", "-c", "constraints.txt", "-e", target)
    stamp.write_text(wanted.hexdigest())


def check() -> int:
    """Lint, types and layers, all at once: types take most of the time, and one core."""
    commands = (
        (BIN / "ruff", "check"),
        (BIN / "ruff", "format", "--check"),
        (BIN / "pyright",),
        (BIN / "lint-imports",),
    )
    running = [subprocess.Popen([str(part) for part in command], cwd=ROOT) for command in commands]
    return max(each.wait() for each in running)


def test(options: list[str]) -> int:
    """Check, then run the tests on two processes; the tests' summary is the last thing that is printed."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    code = check()
    data = ROOT.parent / "shared" / "data"
    if "LOCALLEARN_DATA" not in os.environ and data.is_dir():
        os.environ["LOCALLEARN_DATA"] = str(data)
    shared_out = ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]  # in the order of tests/conftest.py
    return call(PYTHON, "-m", "pytest", *(options or shared_out)) or code


def main() -> int:
    """Run the command named on the command line."""
    if sys.version_info < (3, 11):
        sys.exit("dev.py: Python 3.11 or later is needed")
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(__doc__)
        return 0
    command, options = sys.argv[1], sys.argv[2:]
    set_up("dev" if command in ("test", "check") else "")
    if command == "test":
        return test(options)
    if command == "check":
        return check()
    return call(PYTHON, "-m", "locallearn", command, *options)


if __name__ == "__main__":
    sys.exit(main())
