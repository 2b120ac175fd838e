"""Trainings one after the other in a user's own process group leave nothing of themselves."""

import subprocess
import sys

import pytest

TRAININGS = """
import dataclasses, os, torch, torch.distributed as dist
import locallearn as ll
from locallearn.runtime.world import process_world
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
config = dataclasses.replace(ll.recipe("gn-dgl"), runtime="distributed")
threads = []
for _ in range(3):
    with process_world(config, torch.device("cpu")) as world:
        if KEPT:
            world.leave = lambda: None
    threads.append(len(os.listdir("/proc/self/task")))
print(len(set(threads)), dist.is_initialized())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
@pytest.mark.parametrize(("kept", "said"), [(False, "1 True"), (True, "3 True")])
def test_threads_of_a_training_end_with_it(kept, said):
    code = TRAININGS.replace("KEPT", str(kept))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == said, done.stderr
