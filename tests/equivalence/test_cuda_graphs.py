"""Steps whose passes are replayed from a graph are those of the inline runtime, bit for bit.

In place of a CUDA graph there is a recording of the operators that torch dispatches: as a graph does, it computes
them again on the same tensors, and what the program does besides is not done again.
"""

import dataclasses

import pytest
import torch

import small
from distributed.compare import figures, last_checkpoint
from locallearn.config import DataConfig, digest
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.core.local_step import LocalStep
from locallearn.core.module import LocalModule
from locallearn.errors import ConfigError
from locallearn.losses.objectives import Objective
from locallearn.runtime import cuda_graphs
from locallearn.runtime.cuda_graphs import CudaGraphsRuntime
from locallearn.runtime.world import Alone
from locallearn.training import own_nodes, runs
from recording import Recording
from same_training import CASES, GENTLE, RISING, differences


@pytest.fixture
def replays(monkeypatch, torch_kernels):
    """Runs of the inline runtime use recordings from the second step of a shape on; how often one was computed."""
    counted = []
    replay = Recording.replay
    monkeypatch.setattr(Recording, "replay", lambda self: counted.append(self) or replay(self))
    monkeypatch.setattr(cuda_graphs, "CudaGraph", Recording)
    monkeypatch.setattr(cuda_graphs, "WARM_UP", 1)
    return counted


def use_recordings(monkeypatch):
    """Inline runs have this runtime from now on."""
    monkeypatch.setattr(own_nodes, "InlineRuntime", lambda steps, _: CudaGraphsRuntime(steps, torch.device("cpu")))


def both(config, folder, monkeypatch):
    """Last checkpoints of an inline run and of one with recordings, and the figures of their records."""
    runs.train(config, folder / "inline")
    use_recordings(monkeypatch)
    runs.train(config, folder / "graphs")
    return [(last_checkpoint(folder / name), figures(folder / name)) for name in ("inline", "graphs")]


@pytest.mark.parametrize("name", CASES)
def test_replays_train_what_the_inline_runtime_does(name, tmp_path, replays, monkeypatch):
    (inline, expected), (graphs, found) = both(CASES[name], tmp_path, monkeypatch)
    assert len(replays) == 9  # of ten steps
    assert len(set(replays)) == 1
    assert differences(graphs, inline) == []
    assert found == expected


def test_smaller_last_batches_have_a_graph_of_their_own(tmp_path, replays, monkeypatch):
    config = dataclasses.replace(CASES["gn-dgl"], data=DataConfig(train_limit=150, test_limit=60))
    (inline, expected), (graphs, found) = both(config, tmp_path, monkeypatch)
    assert len(set(replays)) == 2
    assert len(replays) == 8
    assert differences(graphs, inline) == []
    assert found == expected


def test_a_resumed_run_records_again(tmp_path, replays, monkeypatch):
    config = CASES["gn-dgl"]
    runs.train(config, tmp_path / "inline")
    use_recordings(monkeypatch)
    with pytest.raises(small.Killed):
        runs.train(config, tmp_path / "graphs", small.KillAt(7))
    runs.resume(tmp_path / "graphs")
    assert len(set(replays)) == 2
    assert differences(last_checkpoint(tmp_path / "graphs"), last_checkpoint(tmp_path / "inline")) == []


def broken(tmp_path, monkeypatch, config=CASES["gn-dgl"]):
    (inline, _), (graphs, _) = both(config, tmp_path, monkeypatch)
    return differences(graphs, inline)


def test_batches_that_do_not_reach_the_graph_are_caught(tmp_path, replays, monkeypatch):
    tensors = cuda_graphs.tensors_of
    monkeypatch.setattr(
        cuda_graphs, "tensors_of", lambda batch: {k: v.clone() for k, v in tensors(batch).items()}
    )  # what is copied to is a copy
    assert broken(tmp_path, monkeypatch)


def test_gradients_that_are_not_put_back_are_caught(tmp_path, replays, monkeypatch):
    record = CudaGraphsRuntime.record

    def forgetful(self, shape, batch):
        record(self, shape, batch)
        shape.gradients = []

    monkeypatch.setattr(CudaGraphsRuntime, "record", forgetful)
    short = dataclasses.replace(CASES["gn-dgl"], data=DataConfig(train_limit=150, test_limit=60))
    assert broken(tmp_path, monkeypatch, short)


def test_a_value_of_the_program_that_changes_is_caught(tmp_path, replays, monkeypatch):
    """An update in the graph would keep the learning rate of the recording."""
    passes, update = LocalStep.passes, LocalStep.update

    def with_update(self, features, batch, *rest):
        found = passes(self, features, batch, *rest)
        update(self)
        return found

    def rate_only(self, rate=None):
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    config = small.config("gn-dgl", 2, (2,), schedule=RISING, optimizer=GENTLE)
    runs.train(config, tmp_path / "inline")
    monkeypatch.setattr(LocalStep, "passes", with_update)
    monkeypatch.setattr(LocalStep, "update", rate_only)
    use_recordings(monkeypatch)
    runs.train(config, tmp_path / "graphs")
    assert differences(last_checkpoint(tmp_path / "graphs"), last_checkpoint(tmp_path / "inline"))


def test_dropout_is_refused():
    module = LocalModule("2", torch.nn.Sequential(torch.nn.Dropout(0.1)), Objective(), 1)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)])
    with pytest.raises(ConfigError, match="runtime: 'cuda-graphs' .* inline with the dropout of module 2"):
        CudaGraphsRuntime([LocalStep(module, optimizer)], torch.device("cpu"))


def test_a_cpu_has_no_graphs(tmp_path):
    config = dataclasses.replace(CASES["gn-dgl"], runtime="cuda-graphs")
    with pytest.raises(ConfigError, match="runtime: 'cuda-graphs' .* inline or threads on cpu"):
        runs.train(config, tmp_path / "run")
    assert digest(config) == digest(CASES["gn-dgl"])


def test_a_run_on_a_gpu_has_this_runtime(monkeypatch):
    made = []
    monkeypatch.setattr(own_nodes, "CudaGraphsRuntime", lambda steps, device: made.append((len(steps), device)))
    config = dataclasses.replace(CASES["gn-dgl"], runtime="cuda-graphs")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, device="cuda:1"))
    image = ImageShape(1, 8, 10)
    own_nodes.Nodes(config, build_network(config, image), image, Alone())
    assert made == [(4, torch.device("cuda:1"))]  # three modules and the decoupled classifier
