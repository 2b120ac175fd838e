"""What is made of the measurements of ``bench distributed`` and ``bench hosts``, and how crews end."""

import os
import signal
import time

import pytest
import torch

from locallearn.bench.crew import Crew
from locallearn.bench.hosts_command import HostsOptions
from locallearn.bench.predicted import LinkSpeed, link_of, predict
from locallearn.bench.processes import CrewPlan, jobs_of, medians, slowest, step_seconds, waited_share
from locallearn.bench.step import Setting
from locallearn.bench.trainers import Lap
from locallearn.core.image_shape import ImageShape
from locallearn.errors import LocalLearnError

SETTING = Setting(ImageShape(3, 8, 5), 8, torch.device("cpu"), "fp32", 1, 1)


def plan(processes=2, cells=((2, 1), (1, 2)), peers=("e2e", "1f1b", "ddp"), timeout=60.0):
    return CrewPlan("tiny-resnet", processes, cells, ("auto",), peers, 4, 2, SETTING, timeout)


def test_only_the_timed_steps_count():
    lap = Lap(ends=[10.0, 12.0, 13.0, 14.0, 20.0], waits=[5.0, 5.5, 5.5, 6.0, 9.0])
    assert step_seconds(lap, lead=2, steps=2) == 1.0
    assert waited_share(lap, lead=2, steps=2) == 0.25


def test_medians_of_processes():
    assert medians([[1.0, 2.0, 9.0], [3.0]]) == [2.0, 3.0]
    assert medians([[], []]) == []
    assert slowest([[1.0, 2.0, 30.0], [3.0, 3.0, 3.0]]).seconds == (3.0, 3.0, 3.0)


def test_who_is_measured():
    jobs = jobs_of(plan())
    assert {name: (job.way, job.config.mesh.size, job.setting.threads) for name, job in jobs.items()} == {
        "e2e": ("inline", 1, 1),
        "e2e, threads": ("inline", 1, 2),
        "dgl K=2 G=1 inline": ("inline", 1, 1),
        "dgl K=2 G=1 inline, threads": ("inline", 1, 2),
        "dgl K=2 G=1": ("distributed", 2, 1),
        "gn-dgl K=1 G=2 inline": ("inline", 1, 1),
        "gn-dgl K=1 G=2 inline, threads": ("inline", 1, 2),
        "gn-dgl K=1 G=2": ("distributed", 2, 1),
        "1f1b": ("1f1b", 2, 1),
        "ddp": ("ddp", 2, 1),
    }
    assert jobs_of(plan(peers=("compiled",)))["compiled"].way == "compiled"
    assert jobs["1f1b"].config.cuts == jobs["dgl K=2 G=1"].config.cuts
    assert jobs_of(plan(4, ((2, 2),), ()))["gn-dgl K=2 G=2"].config.mesh.width == 2


def test_a_link_by_hand():
    link = link_of([2e-3] * 3, [0.1, 0.042, 0.042], n_bytes=10**6)
    assert link.latency == 1e-3
    assert link.bandwidth == pytest.approx(10**6 / 0.02)


def predicted(name, parts, link=None):
    return predict(jobs_of(plan())[name], parts, 1.0, link)["predicted_images_per_second"]


def test_predictions_by_hand():
    """A batch of 8 images: local nodes take as long as the slower one, pipelines have bubbles, replicas exchange."""
    assert predicted("dgl K=2 G=1", [0.5, 1.0]) == pytest.approx(8 / 1.0)
    assert predicted("1f1b", [1.0, 1.0]) == pytest.approx(8 / 1.25)  # 4 microbatches: 5 slots for 4
    assert predicted("ddp", [1.0, 1.0]) == pytest.approx(8 / 1.0)
    assert predicted("dgl K=2 G=1", [0.5, 1.0], LinkSpeed(float(2**40), 0.1)) == pytest.approx(
        8 / 1.0
    )  # it is hidden
    assert predicted("1f1b", [1.0, 1.0], LinkSpeed(float(2**40), 0.1)) < 8 / 1.4
    assert predict(jobs_of(plan())["e2e"], [], 1.0, None)["deviation"] is None


def test_deviation_is_of_the_step():
    assert predict(jobs_of(plan())["ddp"], [1.0, 1.0], 1.1, None)["deviation"] == pytest.approx(0.1)


def running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_process_that_dies_or_hangs_is_one_line():
    """And none is left."""
    crew = Crew("ddp", jobs_of(plan(timeout=60.0))["ddp"], 60.0)
    try:
        crew.answers()
        assert all(len(lap.ends) == 2 for lap in crew.ask("run", 2))
        crew.timeout = 0.2
        with pytest.raises(LocalLearnError, match=r"ddp, process 1 of 2: did not answer in 0.2 s"):
            crew.ask("run", 10**6, ranks=[0])  # the other one does not come
        os.kill(crew._processes[1].pid, signal.SIGKILL)
        crew.timeout = 30.0
        with pytest.raises(LocalLearnError, match=r"ddp, process 2 of 2: was killed by signal 9"):
            crew.ask("memory", ranks=[1])
    finally:
        pids = [process.pid for process in crew._processes]
        crew.close()
    assert not any(running(pid) for pid in pids)


def test_a_crew_ends_with_the_process_that_started_it():
    """Its standard input is closed then."""
    crew = Crew("e2e", jobs_of(plan())["e2e"], 60.0)
    try:
        crew.answers()
        assert crew._processes[0].stdin is not None
        crew._processes[0].stdin.close()
        end = time.monotonic() + 20
        while crew._processes[0].poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        assert crew._processes[0].poll() == 1
    finally:
        crew.close()


@pytest.mark.parametrize(
    ("given", "cables"),
    [
        ({}, [(0.0, None), (0.002, None), (0.01, None), (0.05, None), (0.0, 12.5e6)]),
        ({"latency": (10.0,)}, [(0.01, None)]),
        ({"bandwidth": (8.0,)}, [(0.0, 1e6)]),
        ({"latency": (1.0,), "bandwidth": (8.0,)}, [(0.001, None), (0.0, 1e6)]),
    ],
)
def test_only_the_cables_that_are_asked_for(given, cables):
    assert HostsOptions(**given).conditions == cables
