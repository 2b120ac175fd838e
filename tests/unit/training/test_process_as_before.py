"""Training leaves the process as it was: threads, environment, random generators; also where it fails."""

import dataclasses
import os
import random

import numpy as np
import pytest
import torch

import locallearn as ll
from locallearn.config import OptimizerConfig
from locallearn.errors import DivergedError


def state():
    own = {name: value for name, value in os.environ.items() if not name.startswith("TORCHINDUCTOR_")}  # torch's own
    numbers = [random.getstate(), torch.random.get_rng_state().tolist(), np.random.get_state()[1].tolist()]
    return torch.get_num_threads(), own, numbers, torch.get_default_dtype()


def config():
    made = ll.recipe("dgl")
    train = dataclasses.replace(made.train, epochs=1, threads=1, device="cpu", batch_size=16)
    return dataclasses.replace(
        made, model="tiny-resnet", train=train, data=dataclasses.replace(made.data, train_limit=64, test_limit=32)
    )


def test_training_and_resuming_put_back_what_they_set(tmp_path):
    torch.set_num_threads(2)
    before = state()
    ll.train(config(), tmp_path / "run")
    assert state() == before
    ll.resume(tmp_path / "run", threads=1, epochs=2)
    assert state() == before


def test_a_training_that_fails_does_too(tmp_path):
    torch.set_num_threads(2)
    before = state()
    steep = dataclasses.replace(config(), optimizer=OptimizerConfig(learning_rate=1e30))
    with pytest.raises(DivergedError):
        ll.train(steep, tmp_path / "run")
    assert state() == before
