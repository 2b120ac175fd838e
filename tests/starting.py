"""Whether a call of the command line imports torch."""

import json
import subprocess
import sys
from pathlib import Path

CODE = """
import contextlib, io, json, sys
import locallearn
from locallearn.cli.main import main
codes = {}
for call in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = main(call.split())
    codes[call] = [code, "torch" in sys.modules]
print(json.dumps(codes))
"""


def outcomes(calls: list[str], folder: Path) -> dict[str, list]:
    """Exit code of every call, in one process and this folder, and whether torch had been imported after it."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(calls)], capture_output=True, text=True, check=True, cwd=folder
    )
    return json.loads(done.stdout)
