"""A TMPDIR whose name is too long for sockets does not matter: a shorter folder is taken."""

import os
import subprocess
import sys
import tempfile
import textwrap

import pytest

from locallearn.errors import UsageError
from locallearn.files import short_temporary_folder


@pytest.fixture
def long_name(tmp_path, monkeypatch):
    folder = tmp_path.joinpath(*["d" * 50] * 3)
    folder.mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    return folder


def test_a_short_folder_stays(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    assert short_temporary_folder() == tempfile.gettempdir() == "/tmp"


def test_a_long_one_is_left_for_a_short_one(long_name):
    found = short_temporary_folder()
    assert len(found) <= 60
    assert tempfile.gettempdir() == found


def test_where_there_is_none_one_line_says_so(long_name, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(
        UsageError, match=f"TMPDIR: '{long_name}' is not valid; expected a folder of at most 60 bytes"
    ):
        short_temporary_folder()


@pytest.mark.parametrize("told", [True, False])
def test_processes_start_under_a_long_name(long_name, tmp_path, told):
    script = tmp_path / "start.py"
    script.write_text(
        textwrap.dedent("""
        import multiprocessing, sys
        from locallearn.files import short_temporary_folder
        if __name__ == "__main__":
            if sys.argv[1] == "True":
                short_temporary_folder()
            process = multiprocessing.get_context("forkserver").Process(target=int)
            process.start()
            process.join()
            print(process.exitcode)
        """)
    )
    command, environment = [sys.executable, script, str(told)], os.environ | {"TMPDIR": str(long_name)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == ("0\n" if told else "")
    assert ("AF_UNIX path too long" in done.stderr) is not told
