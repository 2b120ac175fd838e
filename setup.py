"""Notes the commit that a wheel is built from in it, so that records of an installed copy can name it.

Everything else about building is in ``pyproject.toml``.
"""

import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).resolve().parent
NAME = "locallearn/commit.txt"


def commit() -> str | None:
    """The commit of this checkout, with ``-dirty`` where files differ; of an archive the one noted in it."""
    noted = ROOT / "src" / NAME
    if noted.is_file():
        return noted.read_text()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        if not git("ls-files", str(ROOT / "pyproject.toml")):
            return None  # inside somebody else's repository
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--", "src") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def note(folder: Path) -> None:
    """Write the commit into the package that is in ``folder``."""
    found = commit()
    if found:
        (folder / NAME).write_text(found)


class BuildPy(build_py):
    """Also notes the commit; an editable installation asks git each time."""

    def run(self) -> None:
        """Build."""
        super().run()
        if not self.editable_mode:
            note(Path(self.build_lib))


class Sdist(sdist):
    """Also notes the commit, which an archive does not have otherwise."""

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        """Copy the files of the archive to a folder."""
        super().make_release_tree(base_dir, files)
        note(Path(base_dir, "src"))


setup(cmdclass={"build_py": BuildPy, "sdist": Sdist})
