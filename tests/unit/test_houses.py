"""Without its houses (bench, kernels, thesis) the package works and its other tests run: on copies without them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOUSES = ("bench", "kernels", "thesis")
COMMANDS = {"bench": "bench", "thesis": "reproduce"}

IMPORT = """
import importlib, pkgutil
import locallearn
for module in pkgutil.walk_packages(locallearn.__path__, "locallearn."):
    if module.name.split(".")[-1] not in ("__main__", "lightning", "transformers", "worker"):
        importlib.import_module(module.name)
from locallearn.cli.main import main
assert main(["--help"]) == 0
"""
USE = """
for call in (
    ["recipes"], ["cost", "--model", "resnet8", "--depth", "2"],
    ["plan", "--model", "resnet8", "--memory", "512MiB", "--depths", "1", "2"],
    ["train", "gn-dgl", "--epochs", "1", "--run", "run"], ["evaluate", "run"], ["report", "run"],
    ["export", "run", "--output", "exported"],
):
    assert main(call) == 0, call
"""
COLLECT = """
import pytest
assert pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "tests"]) == 0
"""


class Copy:
    """A copy of the project without some houses."""

    def __init__(self, folder: Path, without: tuple[str, ...]):
        self.folder, self.without = folder, without
        for part in ("src", "tests"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        for house in without:
            shutil.rmtree(folder / "src/locallearn" / house)

    def python(self, *arguments: str) -> tuple[int, str]:
        environment = {**os.environ, "PYTHONPATH": str(self.folder / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        environment.pop("LOCALLEARN_PLUGINS", None)
        found = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        return found.returncode, found.stdout + found.stderr

    def offers(self, printed: str) -> bool:
        """Whether the help names the commands of the houses that are there, and no others."""
        return all(
            (f"\n  {command} " in printed) is (house not in self.without) for house, command in COMMANDS.items()
        )


@pytest.mark.parametrize("house", HOUSES)
def test_nothing_else_needs_a_house(house, tmp_path):
    copy = Copy(tmp_path, (house,))
    code, printed = copy.python("-c", IMPORT)
    assert code == 0, printed
    assert copy.offers(printed)


def test_a_part_that_needs_one_is_found_out(tmp_path):
    """The check itself: a module that needs the house cannot be imported."""
    copy = Copy(tmp_path, ("thesis",))
    (tmp_path / "src/locallearn/needs_it.py").write_text("import locallearn.thesis\n")
    code, printed = copy.python("-c", IMPORT)
    assert code == 1
    assert "No module named 'locallearn.thesis'" in printed


def test_without_all_of_them_the_commands_work_and_the_other_tests_can_run(tmp_path):
    copy = Copy(tmp_path, HOUSES)
    code, printed = copy.python("-c", IMPORT + USE + COLLECT)
    assert code == 0, printed[-3000:]
    assert copy.offers(printed)
    assert json.loads((tmp_path / "run/summary.json").read_text())
    assert "tests/unit/test_houses.py: " in printed
    assert not any(f"tests/unit/{house}/" in printed for house in HOUSES)
