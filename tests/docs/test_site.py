"""The site builds without a warning, needs nothing from elsewhere, and its pictures are what the script draws."""

import os
import re
import subprocess
import sys

import pytest

from doc_blocks import ROOT
from locallearn.cli.main import COMMANDS


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return folder


def test_nothing_is_loaded_from_elsewhere(site):
    loads = re.compile(r"""<(?:link|script|img|iframe)[^>]*(?:href|src)=["']?(?:https?:)?//""")
    for page in site.rglob("*.html"):
        assert not loads.search(page.read_text()), page.name
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text()), sheet.name


def test_the_reference_has_every_command_and_public_name(site):
    import locallearn as ll

    commands = (site / "reference" / "cli.html").read_text()
    for command in COMMANDS:
        assert f"usage: locallearn {command}" in commands
    names = (site / "reference" / "python.html").read_text()
    for name in ll.__all__:
        assert re.search(rf"\b{name}\b", names), name


def test_pictures_are_drawn_by_the_script(tmp_path):
    pictures = ROOT / "docs" / "pictures"
    script = (pictures / "draw.py").read_text()
    (tmp_path / "draw.py").write_text(script)
    subprocess.run([sys.executable, "draw.py"], cwd=tmp_path, check=True)
    drawn = {path.name: path.read_text() for path in tmp_path.glob("*.svg")}
    assert drawn == {path.name: path.read_text() for path in pictures.glob("*.svg")}
    assert len(drawn) == 3
