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


def test_workers_of_a_loader_start_under_a_long_name(long_name, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent("""
        import torch, locallearn as ll
        from torch import nn
        if __name__ == "__main__":
            data = torch.utils.data.TensorDataset(torch.rand(8, 8), torch.arange(8) % 4)
            model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
            network = ll.split(model, cuts=["1"], example=(torch.rand(4, 8), torch.arange(4)))
            loader = torch.utils.data.DataLoader(data, 4, num_workers=1, multiprocessing_context="forkserver")
            print(ll.Trainer(network).fit(loader, epochs=1)["status"])
        """)
    )
    done = subprocess.run(
        [sys.executable, script],
        env=os.environ | {"TMPDIR": str(long_name)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "finished\n", done.stderr
