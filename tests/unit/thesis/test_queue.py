"""The queue, with workers of a few lines that start in no time; the command line's tests have real ones."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
import torch

from locallearn.lock import acquire, is_held
from locallearn.thesis import queue
from locallearn.thesis.queue import CellJob, Queue, Silent
from locallearn.thesis.worker import Request

WORKER = """
import json, os, pathlib, signal, sys, time
request = json.loads(sys.stdin.readline())
run, record = pathlib.Path(request["run"]), pathlib.Path(request["record"])
run.mkdir(parents=True, exist_ok=True)
with open(run / "starts", "a") as file:
    file.write(f"{os.getpid()}\\n")
def stop(number, frame):
    (run / "checkpoint").write_text("half")
    sys.exit("interrupted at step 1")
signal.signal(signal.SIGTERM, stop)
(run / "ready").touch()
how = request["how"]
if how == "fail":
    print("some output", file=sys.stderr)
    sys.exit("locallearn: the loss became NaN")
if how == "die":
    os.kill(os.getpid(), signal.SIGKILL)
if how == "lie":
    sys.exit(0)
while how == "long" and not (run / "checkpoint").exists():
    time.sleep(0.01)
while how == "meet" and len(list(run.parent.glob("*/ready"))) < 2:
    time.sleep(0.01)
record.write_text("done")
"""
COMMAND = (sys.executable, "-S", "-c", WORKER)


@pytest.fixture
def job(tmp_path):
    def make(name, how="succeed"):
        run, record = tmp_path / "runs" / name, tmp_path / f"{name}.json"
        return CellJob(name, run, {"run": str(run), "record": str(record), "how": how}, record.is_file)

    return make


class Listen(Silent):
    def __init__(self):
        self.told = []

    def on_start(self, job):
        self.told.append(("start", job.name))

    def on_finish(self, job, seconds):
        self.told.append(("finish", job.name))

    def on_failure(self, job, message):
        self.told.append(("failure", job.name))

    def on_busy(self, job, process):
        self.told.append(("busy", job.name, process))


class WaitFor(Silent):
    """The queue's clock goes on only once this is so: a busy machine must not decide a test."""

    def __init__(self, condition):
        self.condition = condition

    def on_tick(self, running):
        end = time.monotonic() + 60
        while not self.condition() and time.monotonic() < end:
            time.sleep(0.01)


def names(jobs):
    return [job.name for job in jobs]


def starts(job):
    """How often a worker was started for this job."""
    path = job.run / "starts"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def test_jobs_run_in_order_and_finished_ones_are_skipped(job):
    jobs = [job("c"), job("a"), job("b")]
    Path(jobs[1].request["record"]).write_text("done")
    listen = Listen()
    outcome = Queue(jobs, observer=listen, command=COMMAND).run()
    assert names(outcome.finished) == ["a", "c", "b"]
    assert listen.told == [("start", "c"), ("finish", "c"), ("start", "b"), ("finish", "b")]
    assert [starts(j) for j in jobs] == [1, 0, 1]
    assert (outcome.failed, outcome.left, outcome.interrupted) == ([], [], False)


def test_failures_are_one_line_and_the_others_go_on(job):
    jobs = [job("a", "fail"), job("b", "die"), job("c", "lie"), job("d")]
    outcome = Queue(jobs, command=COMMAND).run()
    assert names(outcome.finished) == ["d"]
    assert [(j.name, message) for j, message in outcome.failed] == [
        ("a", "the loss became NaN"),
        ("b", "its process was killed by signal 9"),
        ("c", "it was trained but left no record of this configuration (was the program changed meanwhile?)"),
    ]
    assert "some output" in jobs[0].beside(".log").read_text()


def test_an_old_failure_is_not_taken_for_a_new_one(job):
    Queue([job("a", "fail")], command=COMMAND).run()
    outcome = Queue([job("a", "die")], command=COMMAND).run()
    assert [message for _, message in outcome.failed] == ["its process was killed by signal 9"]


def test_several_at_once(job):
    """Each of the two waits for the other: one after the other they would never end."""
    outcome = Queue([job("a", "meet"), job("b", "meet")], parallel=2, command=COMMAND).run(budget=60)
    assert sorted(names(outcome.finished)) == ["a", "b"]


def test_the_budget_stops_workers_cleanly_and_the_next_queue_goes_on(job):
    jobs = [job("a", "long"), job("b")]
    outcome = Queue(jobs, observer=WaitFor((jobs[0].run / "ready").exists), command=COMMAND).run(budget=0.01)
    assert (names(outcome.finished), outcome.failed, names(outcome.left)) == ([], [], ["a", "b"])
    assert not outcome.interrupted
    assert (jobs[0].run / "checkpoint").read_text() == "half"
    assert not is_held(jobs[0].beside(".lock"))
    outcome = Queue(jobs, command=COMMAND).run()
    assert names(outcome.finished) == ["a", "b"]
    assert [starts(j) for j in jobs] == [2, 1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_queue_and_its_workers(job, number):
    jobs = [job("a", "long"), job("b")]

    class Interrupt(Silent):
        def on_tick(self, running):
            if (jobs[0].run / "ready").exists():
                os.kill(os.getpid(), number)

    outcome = Queue(jobs, observer=Interrupt(), command=COMMAND).run(budget=60)
    assert outcome.interrupted
    assert (names(outcome.left), outcome.failed) == (["a", "b"], [])
    assert (jobs[0].run / "checkpoint").exists()
    assert starts(jobs[1]) == 0


def test_a_worker_that_does_not_stop_is_killed(job, monkeypatch):
    monkeypatch.setattr(queue, "GRACE", 0.0)
    deaf = WORKER.replace("signal.signal(signal.SIGTERM, stop)", "signal.signal(signal.SIGTERM, signal.SIG_IGN)")
    a = job("a", "long")
    ready = WaitFor((a.run / "ready").exists)
    outcome = Queue([a], observer=ready, command=(sys.executable, "-S", "-c", deaf)).run(budget=0.01)
    assert names(outcome.left) == ["a"]
    assert not is_held(a.beside(".lock"))


def test_a_lock_left_by_a_dead_process_does_not_count(job):
    a = job("a")
    a.run.parent.mkdir(parents=True)
    dead = subprocess.Popen([sys.executable, "-S", "-c", ""])
    dead.wait()
    a.beside(".lock").write_text(str(dead.pid))
    assert names(Queue([a], command=COMMAND).run(budget=60).finished) == ["a"]


def test_a_job_that_somebody_trains_is_waited_for_and_not_trained_again(job):
    a, b = job("a"), job("b")
    lock = acquire(a.beside(".lock"))
    lock.write("4711")
    lock.flush()
    listen = Listen()

    class Finish(Listen):
        def on_finish(self, job, seconds):  # while b was trained, the other process has finished a
            Path(a.request["record"]).write_text("done")
            lock.close()

    listen = Finish()
    outcome = Queue([a, b], observer=listen, command=COMMAND).run(budget=60)
    assert listen.told == [("busy", "a", "4711"), ("start", "b")]
    assert names(outcome.finished) == ["b", "a"]
    assert starts(a) == 0


def test_two_queues_share_the_jobs(job):
    jobs = [job(str(i)) for i in range(6)]
    outcomes = []
    threads = [threading.Thread(target=lambda: outcomes.append(Queue(jobs, command=COMMAND).run(60))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [starts(j) for j in jobs] == [1] * 6
    assert all(
        names(outcome.left) == [] and sorted(names(outcome.finished)) == list("012345") for outcome in outcomes
    )


def test_without_locks_two_queues_train_twice(job, monkeypatch, tmp_path):
    """The sibling: what the locks are there for."""
    a = job("a", "meet")
    a.run.mkdir(parents=True)
    monkeypatch.setattr(queue, "acquire", lambda path: tempfile.TemporaryFile("w", dir=tmp_path))  # noqa: SIM115
    both = WaitFor(lambda: starts(a) == 2)
    queues = [Queue([a], observer=both, command=COMMAND) for _ in "ab"]
    threads = [threading.Thread(target=each.run, args=(0.01,)) for each in queues]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert starts(a) == 2


PROGRAM = """
import json, sys
from pathlib import Path
from locallearn.thesis.queue import CellJob, Queue
run, request, *command = sys.argv[1:]
Queue([CellJob("a", Path(run), json.loads(request), lambda: False)], command=command).run()
"""


def kill_when(condition, job, command):
    """Start a queue of this job in a process of its own and end it with ``kill -9`` once the condition holds."""
    arguments = (str(job.run), json.dumps(job.request), *command)
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments])
    WaitFor(condition).on_tick([])
    process.kill()
    process.wait()


def test_a_killed_queue_leaves_its_worker_the_lock(job):
    """A worker that goes on holds its cell as long as it lives, and no longer."""
    a = job("a", "long")
    kill_when((a.run / "ready").exists, a, COMMAND)
    assert is_held(a.beside(".lock"))
    assert Queue([a], command=COMMAND).run(budget=0.5).left == [a]
    assert starts(a) == 1
    os.kill(int(a.beside(".lock").read_text()), signal.SIGTERM)
    assert names(Queue([a], command=COMMAND).run(budget=60).finished) == ["a"]
    assert starts(a) == 2


def test_a_real_worker_does_not_outlive_a_killed_queue(tmp_path):
    """It notices, writes a checkpoint and ends."""
    run, study = tmp_path / "run", {"protocol": "quick", "epochs": 5000, "train_limit": 256}
    request = Request("digits-resnet8-e2e", study, 0, str(run), str(tmp_path / "a.json"), threads=1)
    a = CellJob("a", run, dataclasses.asdict(request), lambda: False)
    kill_when(lambda: list(run.glob("checkpoints/step-*")), a, queue.WORKER)
    WaitFor(lambda: not is_held(a.beside(".lock"))).on_tick([])
    assert not is_held(a.beside(".lock"))
    assert "interrupted at step" in a.beside(".log").read_text()


def test_default_number_of_jobs(monkeypatch):
    assert queue.default_jobs("cpu") == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(queue, "cores", lambda: 16)
    for gib, jobs in ((78, 13), (5, 1), (500, 16)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, gib=gib: (gib << 30, 80 << 30))
        assert queue.default_jobs("cuda") == jobs
