"""What models keep beside weights (hooks, states, buffers made anew): on threads as in one forward pass."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import locallearn as ll

DATA = [(torch.randn(n, 8, generator=torch.Generator().manual_seed(n)), torch.arange(n) % 5) for n in (6, 4, 5, 3)]


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


class Net(nn.Module):
    """Four layers, the middle two of some kind."""

    def __init__(self, kind):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(8, 16), kind(), kind(), nn.Linear(16, 5)

    def forward(self, x):
        return self.d(self.c(self.b(self.a(x).relu()).relu()).relu())


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.own = nn.Linear(16, 16)

    def forward(self, x):
        return self.own(x)


class Centred(Layer):
    """Makes its buffer anew in every pass, as running means are often written."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(16))

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return self.own(x - self.mean)


class Stateful(Layer):
    """Keeps a state in an attribute, as recurrent layers do that go on from batch to batch."""

    state = None

    def forward(self, x):
        h = self.own(x) if self.state is None else self.own(x) + self.state
        if self.training:
            self.state = h.detach().mean(0)
        return h


class Counting(Layer):
    def __init__(self):
        super().__init__()
        self.steps, self.seen = 0, []

    def forward(self, x):
        if self.training:
            self.steps += 1
            self.seen.append(len(x))
        return self.own(x) * min(1.0, self.steps / 4) * (1 + 0.1 * len(self.seen))


class Queue(Layer):
    """Writes into an attribute that is no buffer."""

    def __init__(self):
        super().__init__()
        self.queue = torch.zeros(4, 16)

    def forward(self, x):
        h = self.own(x)
        out = h + torch.softmax(h @ self.queue.T.clone(), -1) @ self.queue.clone()
        if self.training:
            self.queue[1:] = self.queue[:-1].clone()
            self.queue[0] = h.detach().mean(0)
        return out


class Again(Layer):
    """Runs once more in the backward pass, in the form that needs an input with a gradient."""

    def forward(self, x):
        return checkpoint(self.own, x, use_reentrant=True)


def hooked(model):
    """With hooks that change what layers are given and give, at the cut, before it and after it."""
    for layer in (model.a, model.b, model.c):
        layer.register_forward_pre_hook(lambda _layer, given: (1.5 * given[0],))
        layer.register_forward_hook(lambda _layer, _given, output: 2 * output + 1)
    return model


def frozen(model):
    """With a first layer that is not trained, and counts batches all the same."""
    model.a = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16)).requires_grad_(False)
    return model


MODELS = {
    "buffers made anew": lambda: Net(Centred),
    "states": lambda: Net(Stateful),
    "counts": lambda: Net(Counting),
    "a queue": lambda: Net(Queue),
    "reentrant checkpoints": lambda: Net(Again),
    "hooks": lambda: hooked(Net(Layer)),
    "old spectral norm": lambda: Net(lambda: nn.utils.spectral_norm(nn.Linear(16, 16))),
    "a frozen batch norm": lambda: frozen(Net(Layer)),
}


def trained(name, runtime):
    torch.manual_seed(0)
    network = ll.split(MODELS[name](), cuts=["b"], example=DATA[0], optimizer=sgd)
    trainer = ll.Trainer(network, optimizer=sgd, runtime=runtime, threads=None if runtime == "inline" else 2)
    trainer.fit(DATA, epochs=2)
    return network, trainer.evaluate(DATA)


@pytest.mark.parametrize("name", MODELS)
def test_threads_train_and_keep_what_one_pass_does(name):
    (inline, evaluated), (threads, as_well) = (trained(name, runtime) for runtime in ("inline", "threads"))
    other = threads.state_dict()
    assert [key for key, value in inline.state_dict().items() if not torch.equal(value, other[key])] == []
    assert evaluated == as_well
    a, b = inline.merge().eval(), threads.merge().eval()
    assert torch.equal(a(DATA[0][0]), b(DATA[0][0]))


def test_a_network_that_trained_on_threads_is_copied_and_saved(tmp_path):
    network, _ = trained("states", "threads")
    torch.save(network, tmp_path / "network.pt")
    again = torch.load(tmp_path / "network.pt", weights_only=False)
    for each in (network, again):
        each.set_optimizers(sgd)
        each.step(DATA[0])
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in network.state_dict().items())
