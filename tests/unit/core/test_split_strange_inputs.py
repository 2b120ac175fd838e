"""Sparse and NumPy inputs, models that build themselves, and models that take gradients by ``torch.func``."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import locallearn as ll

X, Y = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 5


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


class Graph(nn.Module):
    """Two graph convolutions of an adjacency matrix."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x, adjacency):
        return self.c((adjacency @ self.b((adjacency @ self.a(x)).relu())).relu())


def neighbours(kind):
    dense = torch.eye(6) + torch.eye(6).roll(1, 0)
    return {"dense": dense, "coo": dense.to_sparse(), "csr": dense.to_sparse_csr()}[kind]


@pytest.mark.parametrize("kind", ["coo", "csr"])
@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_inputs_train_what_dense_ones_do(kind):
    states = []
    for given, runtime in (("dense", "inline"), (kind, "inline"), (kind, "threads")):
        batch = ((X, neighbours(given)), Y)
        trainer = ll.Trainer(ll.split(Graph(), cuts=["b"], example=batch, optimizer=sgd), runtime=runtime)
        trainer.fit([batch] * 2, epochs=2, validation=[batch])
        states.append(trainer.network.state_dict())
    torch.testing.assert_close(states[1], states[0])
    torch.testing.assert_close(states[2], states[1], rtol=0, atol=0)


def test_arrays_of_numpy_are_batches():
    batches = [(X, Y), (X.numpy().copy(), Y.numpy().copy())]
    states = []
    for batch in batches:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))
        network = ll.split(model, depth=2, example=batch, optimizer=sgd)
        network.step(batch)
        states.append(network.state_dict())
    assert isinstance(batches[1][0], np.ndarray)
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)


class Builds(nn.Module):
    """Makes its last layer, or a buffer, when it first runs."""

    def __init__(self, what):
        super().__init__()
        self.a, self.b, self.c, self.what = nn.Linear(8, 8), nn.Linear(8, 8), None, what

    def forward(self, x):
        x = self.b(self.a(x).relu()).relu()
        if self.what == "layer" and self.c is None:
            self.c = nn.Linear(8, 5)
        if self.what == "buffer" and not hasattr(self, "scale"):
            self.register_buffer("scale", torch.ones(8))
        return self.c(x) if self.what == "layer" else x * self.scale


@pytest.mark.parametrize(("what", "name"), [("layer", "c.bias"), ("buffer", "scale")])
def test_a_model_that_builds_itself_is_to_run_first(what, name):
    model = Builds(what)
    with pytest.raises(ll.LocalLearnError, match=f"model: {name} is made in the first forward pass; run the model"):
        ll.split(model, depth=2, example=(X, Y))
    model(X)
    assert ll.split(model, depth=2, example=(X, Y)).step((X, Y))["loss"].isfinite()


class Force(nn.Module):
    """The gradient of an energy, by ``torch.func``, which no hooks on kept tensors may watch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 1, bias=False)

    def forward(self, x):
        return torch.func.vmap(torch.func.grad(lambda one: self.b(self.a(one).tanh()).squeeze()))(x)


def test_gradients_by_torch_func_are_trained_without_weighing_the_step():
    model, batch = Force(), (X, torch.rand(6, 8))
    network = ll.split(model, depth=1, example=batch, optimizer=sgd)
    summary = ll.Trainer(network).fit([batch])
    loss = F.mse_loss(model(X), batch[1])
    gradient = torch.autograd.grad(loss, model.a.weight)[0]
    torch.testing.assert_close(network.merge().a.weight, model.a.weight - 0.1 * gradient)
    assert not network.weighable
    assert summary["memory"]["activation_bytes"] == 0


def test_the_scores_of_a_model_of_many_outputs_are_told_where_something_does_not_train():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 5)

        def forward(self, x):
            features = self.b(self.a(x).relu())
            return {"features": features, "classes": self.c(features)}

    with pytest.warns(
        UserWarning, match=r"nothing trains c\.bias, c\.weight: .*; the model's scores are its logits, or else"
    ):
        ll.split(Both(), cuts=["a"], example=(X, Y))
