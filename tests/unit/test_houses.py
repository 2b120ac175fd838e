"""Without a house of its own the package works, and its other tests can run: each is taken out of a copy."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

USE = """
import importlib, pkgutil
import locallearn
for module in pkgutil.walk_packages(locallearn.__path__, "locallearn."):
    if module.name.split(".")[-1] not in ("__main__", "lightning", "transformers", "worker"):
        importlib.import_module(module.name)
from locallearn.cli.main import main
for call in (
    ["--help"], ["recipes"], ["cost", "--model", "resnet8", "--depth", "2"],
    ["plan", "--model", "resnet8", "--memory", "512MiB", "--depths", "1", "2"],
    ["train", "gn-dgl", "--epochs", "1", "--run", "run"], ["evaluate", "run"], ["report", "run"],
    ["export", "run", "--output", "exported"],
):
    assert main(call) == 0, call
"""


@pytest.fixture(params=["bench", "kernels", "thesis"])
def without(request, tmp_path):
    """A copy of the project without the house, and how to run Python there."""
    for folder in ("src", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.rmtree(tmp_path / "src/locallearn" / request.param)

    def python(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        environment.pop("LOCALLEARN_PLUGINS", None)
        found = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        return found.returncode, found.stdout + found.stderr

    python.house, python.folder = request.param, tmp_path
    return python


def test_everything_else_works(without):
    code, printed = without("-c", USE)
    assert code == 0, printed
    summary = json.loads((without.folder / "run/summary.json").read_text())
    assert summary
    names = {"bench": "bench", "thesis": "reproduce"}
    for house, command in names.items():
        assert (f"\n  {command} " in printed) is (house != without.house)


def test_other_tests_can_run(without):
    code, printed = without("-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "tests")
    assert code == 0, printed[-3000:]
    assert (f"tests/unit/{without.house}/" in printed) is False


def test_a_part_that_needs_it_is_found_out(without):
    """The check itself: a module that needs the house cannot be imported."""
    (without.folder / "src/locallearn/needs_it.py").write_text(f"import locallearn.{without.house}\n")
    code, printed = without("-c", USE)
    assert code == 1
    assert f"No module named 'locallearn.{without.house}'" in printed
