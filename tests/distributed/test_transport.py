"""Features on their way: how many wait, and how they travel."""

import dataclasses

import pytest
import torch

import small
from distributed.compare import inline, last_checkpoint, on
from distributed.processes import finish, start, train_all
from locallearn.config import digest
from locallearn.core.local_step import LocalStep

SLOW_RECEIVER = """
import sys, threading, time, torch, torch.distributed as dist
from locallearn.runtime.transport import Receiver, Sender
from locallearn.runtime.messages import Link
torch.set_num_threads(1)
dist.init_process_group("gloo")
features, control, device = dist.new_group(), dist.new_group(), torch.device("cpu")
x, handed = torch.arange(1e6).view(2, -1), []

def put_all(sender):
    for step in range(8):
        sender.put(x + step, step)
        handed.append(step)

if dist.get_rank() == 0:
    sender = Sender(0, [Link(1, "b")], features, device, int(sys.argv[1]))
    thread = threading.Thread(target=put_all, args=[sender])
    thread.start()
    end = time.monotonic() + 30
    while len(handed) <= int(sys.argv[1]) and time.monotonic() < end:
        time.sleep(0.01)
    thread.join(0.5)  # the receiver computes for ever
    print(len(handed), thread.is_alive())
    dist.barrier(group=control)
    thread.join()
    sender.close()
    print(len(handed), sender.waited > 0.4)
else:
    receiver = Receiver(0, [Link(0, "a")], "b", features, device, (500000,), x.dtype, 0, 8, 1)
    dist.barrier(group=control)
    print(all(torch.equal(receiver.get(2).features, x + step) for step in range(8)))
dist.barrier(group=control)
"""


@pytest.mark.parametrize("in_flight", [1, 3])
def test_a_sender_waits_for_a_slow_receiver(in_flight):
    """One batch is with the receiver, ``in_flight`` are on their way, and the next one is not taken."""
    (code, output, errors), (other, received, more) = finish(start(["-c", SLOW_RECEIVER, str(in_flight)], 2))
    assert (code, other) == (0, 0), errors + more
    assert output.splitlines() == [f"{in_flight + 1} True", "8 True"]
    assert received.splitlines() == ["True"]


def test_features_travel_as_bf16(tmp_path, monkeypatch):
    """The run is that of one process that rounds features between modules, bit for bit."""
    config = on(small.config("dgl", 2, (1,)), 2)
    rounding = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, wire="bf16"))
    assert digest(rounding) != digest(config)
    train_all({"run": rounding}, tmp_path, 2)
    found = last_checkpoint(tmp_path / "run").tensors
    exact = inline(config, tmp_path / "exact").tensors
    step = LocalStep.__call__

    def rounded(self, *given):
        features, loss = step(self, *given)
        return features.bfloat16().float(), loss

    monkeypatch.setattr(LocalStep, "__call__", rounded)
    expected = inline(config, tmp_path / "rounded").tensors
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []
    assert any(not torch.equal(found[key], exact[key]) for key in exact)
