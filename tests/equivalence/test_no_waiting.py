"""Nothing in the steps of an epoch asks for a value: on a GPU that would make the host wait for the device."""

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

import small
from locallearn.data.datasets import load
from locallearn.training.configured import Training
from locallearn.training.observer import Quiet
from locallearn.training.record import RunFolder
from locallearn.training.setup import resolve

WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal")


class NoWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in WAITS:
            raise AssertionError(f"{func} makes the host wait")
        return func(*args, **(kwargs or {}))


def steps_of_an_epoch(method, tmp_path, depth, width):
    config = small.config(method, depth=depth, width=width)
    dataset = load(config.data)
    training = Training(resolve(config, dataset), dataset, RunFolder(tmp_path), Quiet())
    with NoWaiting():
        for batch in training.train_store.epoch(0, config.train.batch_size):
            for trained in training.runtime.step(batch, training.step, 0.1):
                training.sums.add(trained.losses, trained.labels, trained.examples)
                training.step += 1
                training.guard.note(trained.losses, training.step)


@pytest.mark.parametrize(
    ("method", "depth", "width"),
    [("e2e", 1, (1,)), ("dgl", 2, (1,)), ("gn-dgl", 2, (4,)), ("infopro", 2, (1,)), ("predsim", 2, (2,))],
)
def test_no_step_waits(method, depth, width, tmp_path):
    steps_of_an_epoch(method, tmp_path, depth, width)


def test_a_loss_that_is_printed_is_caught(tmp_path, monkeypatch):
    from locallearn.core.local_step import LocalStep

    own = LocalStep.__call__

    def printing(*args):
        features, loss = own(*args)
        assert loss.total.sum().item() > 0
        return features, loss

    monkeypatch.setattr(LocalStep, "__call__", printing)
    with pytest.raises(AssertionError, match="makes the host wait"):
        steps_of_an_epoch("gn-dgl", tmp_path, 2, (2,))
