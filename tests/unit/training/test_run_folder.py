"""A run folder has one writer, and what a kill or a full disk leaves of it can be gone on with."""

import json
import os
import resource
import signal
import subprocess
import sys

import pytest
from tests.small import KillAt, Killed, config

from locallearn.errors import DiskError, UsageError
from locallearn.lock import run_lock
from locallearn.training import runs
from locallearn.training.checkpoint import load
from locallearn.training.observer import Quiet
from locallearn.training.record import RunFolder


class Warnings(Quiet):
    def __init__(self):
        self.told = []

    def on_warning(self, message):
        self.told.append(message)


def _killed(run, step=3):
    with pytest.raises(Killed):
        runs.train(config(), run, KillAt(step))
    return run


def _weights(run):
    path = sorted((run / "checkpoints").glob("step-*"))[-1]
    return {name: tensor.tolist() for name, tensor in load(path).tensors.items() if name.startswith("network/")}


@pytest.mark.parametrize("left", [(".lock",), (".lock", ".config.toml.4711.tmp"), (".config.toml.4711-0.tmp",)])
def test_what_a_kill_leaves_before_a_run_begins_is_no_obstacle(tmp_path, left):
    run = tmp_path / "run"
    run.mkdir()
    for name in left:
        (run / name).write_text("half")
    runs.train(config(), run)
    assert (run / "summary.json").is_file()
    assert [path.name for path in run.glob(".*")] == [".lock"]


def test_what_a_kill_leaves_of_a_summary_that_is_there_goes_when_the_run_is_opened_again(tmp_path):
    runs.train(config(), tmp_path / "run")
    (tmp_path / "run" / f".summary.json.{2**30}-20.tmp").mkdir()
    assert runs.resume(tmp_path / "run")["status"] == "finished"
    assert list((tmp_path / "run").glob(".*.tmp")) == []


def test_a_file_of_the_user_is_an_obstacle(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".config.toml.mine").write_text("a")
    with pytest.raises(UsageError, match="is there already"):
        runs.train(config(), run)


def test_a_kill_while_a_run_is_replaced_leaves_a_run(tmp_path, monkeypatch):
    run = _killed(tmp_path / "run")

    def full(path, text):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("locallearn.training.record.write_atomically", full)
        with pytest.raises(Killed):
            runs.train(config(seed=1), run, overwrite=True)
    assert not (run / "checkpoints").exists()
    assert runs.train(config(seed=1), run, overwrite=True)["seed"] == 1


@pytest.fixture
def holder(tmp_path):
    """Another process that has the lock of a killed run; it ends with its standard input."""
    run = _killed(tmp_path / "run")
    code = (
        "import pathlib, sys; from locallearn.training.record import RunFolder; "
        f"folder = RunFolder(pathlib.Path({str(run)!r})); folder.claim(); print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield run, process
    process.kill()
    process.communicate()


def test_a_run_that_is_being_trained_is_left_alone(holder):
    run, process = holder
    before = sorted(str(path) for path in run.rglob("*"))
    for refused in (lambda: runs.resume(run), lambda: runs.train(config(), run, overwrite=True)):
        with pytest.raises(UsageError, match=f"{run} is being trained by process {process.pid}"):
            refused()
    assert sorted(str(path) for path in run.rglob("*")) == before
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert runs.resume(run)["status"] == "finished"


def test_without_the_lock_two_would_train(holder):
    """The sibling: what the lock is there for."""
    run, _ = holder
    run_lock(run).unlink()
    assert runs.resume(run)["status"] == "finished"


def test_damaged_lines_of_the_record_are_named_and_the_rest_goes_on(tmp_path):
    run, whole = _killed(tmp_path / "run", step=7), tmp_path / "whole"
    runs.train(config(), whole)
    path = run / "metrics.jsonl"
    first, train, evaluate = path.read_text().splitlines()
    path.write_bytes(
        b"\n".join(
            [first.encode(), b"\xff\xfe", b"[1]", train.encode(), b'{"event": "train"}', evaluate.encode(), b'{"ev']
        )
    )
    warnings = Warnings()
    runs.resume(run, warnings)
    assert [told.split(" is damaged")[0].split()[-1] for told in warnings.told] == ["2", "3", "5"]
    kinds = [json.loads(line)["event"] for line in path.read_text().splitlines()]
    assert kinds == ["start", "train", "evaluate", "resume", "train", "evaluate"]
    assert _weights(run) == _weights(whole)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff\xfe\x00", b'{"status": "finished"}', b"[" * 100_000])
def test_a_damaged_summary_is_named_and_written_anew(tmp_path, content):
    run = tmp_path / "run"
    before = runs.train(config(), run)
    (run / "summary.json").write_bytes(content)
    warnings = Warnings()
    after = runs.resume(run, warnings)
    assert "summary.json" in warnings.told[0]
    assert after["accuracy"] == before["accuracy"]
    assert json.loads((run / "summary.json").read_text())["digest"] == before["digest"]


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"seed = [", b"seed = 'a'", b"depth = 0"])
def test_a_damaged_configuration_is_named(tmp_path, content):
    (tmp_path / "config.toml").write_bytes(content)
    with pytest.raises(UsageError, match=r"config\.toml"):
        RunFolder(tmp_path).config()


@pytest.mark.parametrize("kib", [0, 1, 5, 20, 60])
def test_a_full_disk_is_one_line_that_says_how_to_go_on(tmp_path, kib):
    """In a process of its own, whose files may not grow beyond a limit."""
    run = tmp_path / "run"
    process = os.fork()
    if not process:
        code = 3
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (kib * 1024, resource.RLIM_INFINITY))
            runs.train(config(), run)
        except DiskError as error:
            (tmp_path / "said").symlink_to(str(error).replace("/", "|"))  # the limit is on files
            code = 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 1
    said = os.readlink(tmp_path / "said").replace("|", "/")
    assert said.startswith(str(run))
    assert "cannot be written (File too large); make room and continue with:" in said
    assert not list(run.rglob("*.tmp"))
    if (run / "config.toml").is_file():
        assert said.endswith(f"locallearn train --resume {run}")
        whole = tmp_path / "whole"
        runs.train(config(), whole)
        runs.resume(run)
        assert _weights(run) == _weights(whole)
    else:
        runs.train(config(), run)
