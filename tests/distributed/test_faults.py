"""Processes that die, fall silent or disagree."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import small
from distributed.processes import HERE, finish, free_port, start
from locallearn.cli.main import main
from locallearn.config import CheckpointConfig, MeshConfig, to_toml
from locallearn.runtime import launch
from locallearn.training import runs
from locallearn.training.checkpoint import load
from programs import Program

STEPS = 50
OPTIONS = [
    "dgl",
    "--depth",
    "2",
    "--runtime",
    "distributed",
    "--mesh.depth",
    "2",
    "--mesh.timeout",
    "60",
    "--model",
    "tiny-resnet",
    "--data.train-limit",
    "160",
    "--data.test-limit",
    "60",
    "--train.batch-size",
    "32",
    "--train.epochs",
    "10",
    "--train.evaluate-every",
    "0",
    "--train.precision",
    "fp32",
    "--train.device",
    "cpu",
    "--train.threads",
    "1",
    "--checkpoint.every-steps",
    "1",
    "--json",
]


def wait_for(done, process, seconds=100):
    end = time.monotonic() + seconds
    while not done():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def steps(run):
    return len(list((run / "checkpoints").glob("step-*/manifest.json")))


def launcher(*arguments):
    """``locallearn train`` that starts the processes of a mesh, each with an interpreter of its own."""
    return Program(["-m", "locallearn", "train", *arguments])


def workers(process):
    """The processes that one started, by rank."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    ranks = {}
    for child in children:
        variables = Path(f"/proc/{child}/environ").read_text().split("\0")
        ranks |= {int(v.split("=")[1]): int(child) for v in variables if v.startswith("RANK=")}
    return ranks


def test_torchrun_starts_again_after_kill_9_and_ends_with_the_same_weights(tmp_path):
    run = tmp_path / "run"
    # the -- is for argparse, which otherwise takes --run for one of torchrun's own options
    port = f"--master-port={free_port()}"
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=2", port, "-m", "--"]
    process = Program([*torchrun, "locallearn", "train", *OPTIONS, "--run", str(run)])
    try:
        wait_for(lambda: steps(run) > 0, process)
        os.kill(workers(process)[1], signal.SIGKILL)
        _, errors = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    config = runs.RunFolder(run).config()
    inline = dataclasses.replace(config, runtime="inline", mesh=MeshConfig(), checkpoint=CheckpointConfig())
    runs.train(inline, tmp_path / "inline")
    found, expected = (load(sorted((r / "checkpoints").glob("step-*"))[-1]) for r in (run, tmp_path / "inline"))
    assert found.progress["step"] == STEPS
    assert [key for key in expected.tensors if not torch.equal(found.tensors[key], expected.tensors[key])] == []
    assert '"event": "resume"' in (run / "metrics.jsonl").read_text()


def test_ctrl_c_ends_all_processes_and_leaves_a_run_that_another_mesh_resumes(tmp_path):
    run = tmp_path / "run"
    process = launcher(*OPTIONS, "--processes", "2", "--run", str(run))
    try:
        wait_for(lambda: steps(run) > 0, process)
        started = list(workers(process).values())
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    lines = [line for line in errors.splitlines() if line.startswith("locallearn:")]
    assert len(lines) == 1
    assert "interrupted at step" in lines[0]
    assert [pid for pid in started if os.path.exists(f"/proc/{pid}")] == []
    assert runs.resume(run, runtime="inline", mesh=MeshConfig())["steps"] == STEPS


def test_the_last_of_four_that_dies_is_named_and_all_end(tmp_path):
    """It is lost to a thread that sends to it, while every other process waits for one that lives."""
    run = tmp_path / "run"
    mesh = ["--width", "2", "--mesh.width", "2", "--processes", "4", "--run", str(run)]
    process = launcher("gn-dgl", *OPTIONS[1:], *mesh)
    try:
        wait_for(lambda: steps(run) > 0, process)
        os.kill(workers(process)[3], signal.SIGKILL)
        begin = time.monotonic()
        _, errors = process.communicate(timeout=100)
        assert time.monotonic() - begin < 25
    finally:
        process.kill()
    lines = [line for line in errors.splitlines() if line.startswith("locallearn:")]
    assert len(lines) == 1, errors
    assert "(rank 3) is lost" in lines[0] or "another process of module 2" in lines[0]


def test_a_process_that_lives_does_not_hide_one_that_died(monkeypatch):
    monkeypatch.setattr(launch, "GRACE_SECONDS", 0.2)
    programs = ("import time; time.sleep(100)", "raise SystemExit(3)")
    crew = launch.Processes([subprocess.Popen([sys.executable, "-c", program]) for program in programs])
    begin = time.monotonic()
    assert crew.wait() == 3
    assert time.monotonic() - begin < 50
    assert crew.first_failure == "process 1 ended with exit code 3"


def test_a_silent_process_is_named(tmp_path):
    config = dataclasses.replace(
        small.config("dgl", 2, (1,)), runtime="distributed", mesh=MeshConfig(depth=2, timeout=3)
    )
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, epochs=500))
    (tmp_path / "silent.toml").write_text(to_toml(config))
    processes = start([str(HERE / "worker.py"), str(tmp_path)], 2)
    try:
        wait_for(lambda: steps(tmp_path / "silent") > 0, processes[0])
        processes[0].send_signal(signal.SIGSTOP)
        begin = time.monotonic()
        _, errors = processes[1].communicate(timeout=60)
        assert time.monotonic() - begin < 40
    finally:
        for process in processes:
            process.kill()
    assert processes[1].returncode == 1
    assert "module 1, group 1 (rank 0) is lost" in errors


DISAGREE = """
import datetime, sys, torch, torch.distributed as dist
from locallearn.runtime.transport import PAYLOAD, Receiver, Sender
from locallearn.runtime.messages import Link, TransportError
torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=30))
group, device, x = dist.group.WORLD, torch.device("cpu"), torch.arange(24.0).view(2, 3, 2, 2)
last = x.contiguous(memory_format=torch.channels_last)
cases = [(x, 5, 0), (last, 5, 0), (x[:, :2], 5, 0), (x, 6, 0), (x, 5, 1), (x.bfloat16(), 5, 0), (x[:1], 5, 0)]
for i, (features, step, module) in enumerate(cases):
    for wire in (None, torch.bfloat16)[: 2 if i < 2 else 1]:
        if dist.get_rank() == 0:
            sender = Sender(module, [Link(1, "module 2 (rank 1)")], group, device, 2, wire)
            sender.put(features, step)
            if i in (0, 1, 6):
                sender.close()
        else:
            link = Link(0, "module 1 (rank 0)")
            receiver = Receiver(0, [link], "module 2 (rank 1)", group, device, (3, 2, 2), x.dtype, 5, 6, 1, wire)
            try:
                found = receiver.get(2).features
                print(torch.equal(found, x), found.stride() == features.stride())
            except TransportError as error:
                print(error)
        if i >= 2 and i != 6:  # the payload that nobody wants
            if dist.get_rank() == 1:
                unwanted = torch.empty(features.numel(), dtype=features.dtype)
                dist.recv(unwanted, 0, group=group, tag=PAYLOAD)
            else:
                sender.close()
dist.barrier()
"""


def test_what_does_not_fit_is_an_error_that_names_both_ends():
    (code, _, errors), (other, output, more) = finish(start(["-c", DISAGREE], 2))
    assert (code, other) == (0, 0), errors + more
    assert output.splitlines() == [
        "True True",
        "True True",
        "True True",
        "True True",
        "module 2 (rank 1) got feature shape (2, 2, 2) from module 1 (rank 0) instead of (3, 2, 2)",
        "module 2 (rank 1) got step 6 from module 1 (rank 0) instead of 5",
        "module 2 (rank 1) got module 2 from module 1 (rank 0) instead of 1",
        "module 2 (rank 1) got features of torch.bfloat16 from module 1 (rank 0) instead of torch.float32",
        "module 2 (rank 1) got 1 images instead of 2 from module 1 (rank 0)",
    ]


def test_the_number_of_processes_must_fit(tmp_path, capsys):
    from locallearn.cli.main import main

    assert not dist.is_initialized()
    assert main(["train", *OPTIONS, "--run", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "distributed on 1 processes" in error
    assert "expected 2 processes for a mesh of depth 2 x width 1 x data 1" in error
    assert not (tmp_path / "run").exists()
    assert main(["train", "dgl", "--processes", "2", "--run", str(tmp_path / "run")]) == 2
    assert "--processes: only with --runtime distributed" in capsys.readouterr().err


def test_a_killed_launcher_takes_its_processes_along_and_the_run_goes_on(tmp_path):
    run = tmp_path / "run"
    process = launcher(*OPTIONS, "--processes", "2", "--run", str(run))
    wait_for(lambda: steps(run) > 0, process)
    started = list(workers(process).values())
    process.kill()
    process.communicate()
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        assert time.monotonic() < end, started
        time.sleep(0.05)
    assert runs.resume(run, runtime="inline", mesh=MeshConfig())["steps"] == STEPS


def test_a_run_that_diverges_is_not_started_again(tmp_path):
    options = ["--optimizer.learning-rate", "1e30", "--processes", "2", "--restarts", "3"]
    process = launcher(*OPTIONS, *options, "--run", str(tmp_path / "run"))
    _, errors = process.communicate(200)
    lines = [line for line in errors.splitlines() if line.startswith("locallearn:")]
    assert process.returncode == 1
    assert len(lines) == 1, errors
    assert "became NaN or infinite at step" in lines[0]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--processes", "3"], "--processes: 3 is not valid; expected 2 for a mesh of depth 2 x width 1 x data 1"),
        (["--processes", "0"], "--processes: 0 is not valid; expected a whole number of at least 1"),
        (
            ["--processes", "2", "--restarts", "-1"],
            "--restarts: -1 is not valid; expected a whole number of at least 0",
        ),
        (["--processes", "4", "--mesh.depth", "4"], "mesh.depth: 4 is not valid; expected at most 2"),
        (["--processes", "6", "--mesh.width", "3"], "mesh.width: 3 is not valid; expected a divisor"),
    ],
)
def test_a_wrong_mesh_starts_no_process(tmp_path, capfd, monkeypatch, options, told):
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: pytest.fail("a process was started"))
    assert main(["train", *OPTIONS, *options, "--run", str(tmp_path / "run")]) == 2
    assert told in capfd.readouterr().err
    assert not (tmp_path / "run").exists()
