"""A cut after ``layer`` in ``x + layer(x)`` is after the sum: a loop with detached sums trains the same weights."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import locallearn as ll
from locallearn.core.local_step import walk
from locallearn.runtime.threads import ThreadsRuntime


class Stream(nn.Module):
    """Residual sums in the outer forward pass, which no submodule ends at."""

    def __init__(self, in_place=False):
        super().__init__()
        self.stem, self.fc = nn.Linear(8, 8), nn.Linear(8, 10)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8)) for _ in range(4))
        self.in_place = in_place

    def forward(self, x):
        x = self.stem(x)
        for layer in self.layers:
            branch = layer(x)
            if self.in_place:
                branch += x
                x = branch
            else:
                x = x + branch
        return self.fc(x)


class Attends(nn.Module):
    """Sums inside blocks that give tuples, the branch second."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"attend": nn.MultiheadAttention(8, 2, batch_first=True), "mlp": nn.Linear(8, 8)})
            for _ in range(3)
        )
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        for block in self.blocks:
            x = torch.add(block["attend"](x, x, x)[0], x)
            x = x + block["mlp"](x)
        return self.fc(x.mean(1))


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def data(seed=0, tokens=()):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(6, *tokens, 8, generator=draw), torch.randint(10, (6,), generator=draw)


def same(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(torch.equal(a, b) for (_, a), (_, b) in pairs)


@pytest.mark.parametrize("break_it", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_cut_at_a_sum_equals_a_loop_that_detaches_the_sum(in_place, break_it):
    torch.manual_seed(0)
    network = ll.split(Stream(in_place), example=data(), cuts=["layers.1"], optimizer=sgd)
    assert network.pieces[0].summed
    assert network.pieces[0].crossing == ()
    model, head = copy.deepcopy(network.model), copy.deepcopy(network.objectives[0].head)
    optimizers = [sgd([model.get_parameter(name) for name in part.parameters]) for part in network.pieces]
    optimizers[0].add_param_group({"params": list(head.parameters())})
    for seed in range(3):
        x, y = data(seed)
        network.step((x, y))
        x = model.stem(x)
        for layer in model.layers[:2]:
            branch = layer(x)
            x = x + branch
        optimizers[0].zero_grad()
        F.cross_entropy(head(branch if break_it else x)[0], y).backward()
        optimizers[0].step()
        x = x.detach()
        for layer in model.layers[2:]:
            x = x + layer(x)
        optimizers[1].zero_grad()
        F.cross_entropy(model.fc(x), y).backward()
        optimizers[1].step()
    assert same(network.merge(), model) is not break_it


def test_balanced_pieces_end_at_sums_where_nothing_else_serves():
    network = ll.split(Stream(), example=data(), depth=4)
    assert [(piece.path, piece.summed) for piece in network.pieces] == [
        *((f"layers.{k}", True) for k in range(3)),
        ("", False),
    ]
    assert max(piece.macs for piece in network.pieces) < 1.3 * min(piece.macs for piece in network.pieces)


def test_gradients_of_later_stages_do_not_cross_a_sum():
    network = ll.split(Stream(), example=data(), depth=2)
    x, y = data()
    for parameter in network.model_stages[0].own_parameters().values():
        parameter.requires_grad_(False)
    kept = {name: p.clone() for name, p in network.model_stages[0].own_parameters().items()}
    network.step((x, y))
    assert all(torch.equal(kept[name], p) for name, p in network.model_stages[0].own_parameters().items())


CASES = {
    "stream": (Stream, (), {"depth": 3}),
    "stream in place": (lambda: Stream(in_place=True), (), {"depth": 3}),
    "sums of tuples": (Attends, (5,), {"cuts": ["blocks.1.attend", "blocks.1.mlp"]}),
}


@pytest.mark.parametrize("name", CASES)
def test_stages_alone_start_and_end_at_sums(name):
    make, tokens, settings = CASES[name]
    torch.manual_seed(0)
    whole = ll.split(make().train(), example=data(0, tokens), optimizer=sgd, **settings)
    assert all(piece.summed for piece in whole.pieces[:-1])
    alone, threads = copy.deepcopy(whole), copy.deepcopy(whole)
    for other in (alone, threads):
        other.set_optimizers(sgd)
        other.run_apart()
    with ThreadsRuntime(threads.steps, 2, 2) as runtime:
        for seed in range(4):
            batch = data(seed, tokens)
            whole.walk(whole.steps, whole.given_batch(batch), index=seed)
            walk(alone.steps, alone.given_batch(batch), index=seed)
            runtime.step(threads.given_batch(batch), seed)
        runtime.settle()
    assert same(whole, alone)
    assert same(whole, threads)


def test_evaluation_and_features_are_of_the_sum():
    torch.manual_seed(0)
    network, batch = ll.split(Stream(), example=data(), cuts=["layers.1"]).eval(), data(3)
    x = network.model.stem(batch[0])
    for layer in network.model.layers[:2]:
        x = x + layer(x)
    with torch.no_grad():
        looked = {name: loss for name, _, loss in network.look(network.given_batch(batch))}
        expected = F.cross_entropy(network.objectives[0].head(x)[0], batch[1])
    assert torch.allclose(looked["1"], expected)
    found = ll.Trainer(network).features([batch], stage=1)
    found = found[0] if isinstance(found, tuple) else found
    assert torch.allclose(torch.as_tensor(found), x.detach(), atol=1e-6)


def test_a_sum_that_runs_again_in_a_backward_pass_is_no_place():
    class Checkpointed(Stream):
        def _body(self, x):
            for layer in self.layers:
                x = x + layer(x)
            return x

        def forward(self, x):
            return self.fc(torch.utils.checkpoint.checkpoint(self._body, self.stem(x), use_reentrant=False))

    network = ll.split(Checkpointed(), example=data(), cuts=["layers.1"])
    assert not network.pieces[0].summed
    assert all(bool(torch.isfinite(value)) for value in network.step(data()).values())


def test_pieces_say_it():
    piece = ll.split(Stream(), example=data(), depth=2).pieces[0]
    assert dataclasses.asdict(piece)["summed"] is True
