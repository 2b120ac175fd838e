"""A built wheel has every file of the package and the command, and works away from its source."""

import email
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import locallearn

ROOT = Path(__file__).resolve().parents[2]
DATA = ("*.jinja", "*.c", "*.h", "py.typed")
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"

GIT = (
    "git init -q && git add . && git -c user.name=a -c user.email=a@b -c commit.gpgsign=false commit -qm a "
    "&& git rev-parse HEAD > ../head"
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("setuptools", minversion="77", reason="builds a wheel without a network")
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    subprocess.run(GIT, cwd=source, shell=True, check=True, capture_output=True)
    done = subprocess.run([sys.executable, "-c", BUILD, target], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [built] = target.glob("*.whl")
    archive = zipfile.ZipFile(built)
    assert archive.read("locallearn/commit.txt") == (source.parent / "head").read_bytes().strip()
    return archive


def test_every_file_of_the_package_is_in_the_wheel_and_nothing_else(wheel):
    package = ROOT / "src" / "locallearn"
    wanted = {path for pattern in ("*.py", *DATA) for path in package.rglob(pattern)}
    inside = {name for name in wheel.namelist() if ".dist-info/" not in name} - {"locallearn/commit.txt"}
    assert inside == {str(path.relative_to(ROOT / "src")) for path in wanted}
    assert any(name.endswith(".jinja") for name in inside)
    assert any(name.endswith(".c") for name in inside)


def _metadata(wheel, name):
    [path] = [path for path in wheel.namelist() if path.endswith(f".dist-info/{name}")]
    return wheel.read(path).decode()


def test_its_metadata_names_the_command_licence_and_links(wheel):
    metadata = email.message_from_string(_metadata(wheel, "METADATA"))
    assert metadata["Version"] == locallearn.__version__
    assert (metadata["Name"], metadata["License-Expression"]) == ("locallearn", "MIT")
    assert metadata["Requires-Python"] == ">=3.11"
    assert [link.split(", ")[0] for link in metadata.get_all("Project-URL")] == ["Thesis"]
    assert "torch>=2.6" in metadata.get_all("Requires-Dist")
    assert "locallearn = locallearn.cli.main:program" in _metadata(wheel, "entry_points.txt")
    assert "MIT License" in _metadata(wheel, "licenses/LICENSE")


def test_the_unpacked_wheel_trains_away_from_its_source(wheel, tmp_path):
    wheel.extractall(tmp_path / "installed")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed"), "LOCALLEARN_KERNELS": "torch"}
    where = "import locallearn; print(locallearn.__file__)"
    short = ["--train.epochs", "1", "--data.train-limit", "64", "--data.test-limit", "16", "--train.batch-size", "32"]
    for command in (["-c", where], ["-m", "locallearn", "train", "e2e", *short, "--run", "first"]):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stderr
        assert command[0] == "-m" or str(tmp_path) in done.stdout
    summary = json.loads((tmp_path / "first" / "summary.json").read_text())
    assert summary["commit"] == wheel.read("locallearn/commit.txt").decode()  # of the checkout that it was built from
    assert (tmp_path / "first" / "report.html").is_file()  # from a template that is data of the package


def test_the_version_is_the_one_that_is_cited():
    cited = (ROOT / "CITATION.cff").read_text()
    project = (ROOT / "pyproject.toml").read_text()
    assert f"\nversion: {locallearn.__version__}\n" in cited
    assert importlib.metadata.version("locallearn") == locallearn.__version__
    [link] = [line.split('"')[1] for line in project.splitlines() if line.startswith("Thesis = ")]
    assert f'url: "{link}"' in cited
