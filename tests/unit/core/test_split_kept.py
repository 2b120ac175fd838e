"""What models keep beside weights (hooks, states, buffers made anew): on threads as in one forward pass."""

import numpy as np
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


class HalfNet(Net):
    """Computes in another type of number, as models do that choose it themselves."""

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


class Teacher(nn.Module):
    """Adds what a frozen layer makes of the input; ``follows`` has it follow a trained one by a moving average."""

    def __init__(self, follows):
        super().__init__()
        self.follows = follows
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 5)
        self.teacher = nn.Linear(8, 16).requires_grad_(False)
        self.centre = nn.BatchNorm1d(16, affine=False)
        self.centre.running_mean += 0.5

    def train(self, mode=True):
        super().train(mode)
        self.centre.eval()
        return self

    def forward(self, x):
        with torch.no_grad():
            if self.follows and self.training:
                self.teacher.weight.data = 0.9 * self.teacher.weight.data + 0.1 * self.a.weight.data
            target = self.centre(self.teacher(x))
        return self.c(self.b(self.a(x).relu()).relu() + target)


class SharedNorm(nn.Module):
    """One batch norm in two stages."""

    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Linear(8, 16), nn.BatchNorm1d(16)
        self.b, self.c, self.d = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 5)

    def forward(self, x):
        x = self.b(self.norm(self.a(x)).relu()).relu()
        return self.d(self.norm(self.c(x)).relu())


class Draws(Layer):
    """Draws from generators of its own."""

    def __init__(self):
        super().__init__()
        self.torch, self.numpy = torch.Generator().manual_seed(1), np.random.default_rng(1)

    def forward(self, x):
        drawn = torch.randn(x.shape, generator=self.torch) + self.numpy.normal()
        return self.own(x + 0.1 * drawn) if self.training else self.own(x)


class InPlaceInput(Net):
    """Normalises its input in place, and looks at it again at the end."""

    def forward(self, x):
        x.mul_(2).sub_(0.5)
        return super().forward(x) + x.sum(1, keepdim=True)


def hooked(model):
    """With hooks that change what layers are given and give, at the cut, before it and after it."""
    for layer in (model.a, model.b, model.c):
        layer.register_forward_pre_hook(lambda _layer, given: (1.5 * given[0],))
        layer.register_forward_hook(lambda _layer, _given, output: 2 * output + 1)
    return model


def written(model):
    """With hooks that write into what the layer at the cut gives."""
    model.b.register_forward_hook(lambda _layer, _given, output: output.mul_(2))
    return model


class KeepsByHook(Net):
    """Keeps what a layer gives by a hook, for the end of the pass."""

    def __init__(self):
        super().__init__(Layer)
        self.kept = {}
        self.a.register_forward_hook(self.keep)
        self.a.register_forward_pre_hook(self.keep_input)

    def keep(self, _layer, _given, output):
        self.kept["a"] = output

    def keep_input(self, _layer, given):
        self.kept["x"] = given[0]

    def forward(self, x):
        return super().forward(x) + self.kept["a"][:, :5] + self.kept["x"][:, :5]


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
    "an autocast of its own": lambda: HalfNet(Layer),
    "a frozen weight made of features": lambda: Follows("features"),
    "a frozen teacher": lambda: Teacher(False),
    "generators of its own": lambda: Net(Draws),
    "an input written into": lambda: InPlaceInput(Layer),
    "features kept by a hook": KeepsByHook,
    "hooks that write": lambda: written(Net(Layer)),
    "hooks": lambda: hooked(Net(Layer)),
    "old spectral norm": lambda: Net(lambda: nn.utils.spectral_norm(nn.Linear(16, 16))),
    "a frozen batch norm": lambda: frozen(Net(Layer)),
}


class Fresh:
    """Batches that nobody has written into."""

    def __len__(self):
        return len(DATA)

    def __iter__(self):
        return ((x.clone(), y) for x, y in DATA)


HOW = {"inline": {}, "threads": {"runtime": "threads", "threads": 2}, "devices": {"devices": ["cpu", "cpu"]}}


def trained(name, how):
    torch.manual_seed(0)
    network = ll.split(MODELS[name](), cuts=["b"], example=DATA[0], optimizer=sgd)
    trainer = ll.Trainer(network, optimizer=sgd, **HOW[how])
    trainer.fit(Fresh(), epochs=2)
    return network, trainer.evaluate(Fresh())


@pytest.mark.parametrize("how", ["threads", "devices"])
@pytest.mark.parametrize("name", MODELS)
def test_stages_apart_train_and_keep_what_one_pass_does(name, how):
    (inline, evaluated), (apart, as_well) = trained(name, "inline"), trained(name, how)
    other = apart.state_dict()
    assert [key for key, value in inline.state_dict().items() if not torch.equal(value, other[key])] == []
    assert evaluated == as_well
    a, b = inline.merge().eval(), apart.merge().eval()
    assert torch.equal(a(DATA[0][0].clone()), b(DATA[0][0].clone()))


def test_a_network_that_trained_on_threads_is_copied_and_saved(tmp_path):
    network, _ = trained("states", "threads")
    torch.save(network, tmp_path / "network.pt")
    again = torch.load(tmp_path / "network.pt", weights_only=False)
    for each in (network, again):
        each.set_optimizers(sgd)
        each.step(DATA[0])
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in network.state_dict().items())


class Follows(nn.Module):
    """A second encoder follows the first one, after its first layer has run."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.b = nn.Linear(8, 8)
        self.q, self.end = nn.Linear(8, 8), nn.Linear(8, 5)
        self.k = nn.Linear(8, 8).requires_grad_(False)

    def forward(self, x):
        h = self.q(self.b(x).relu())
        with torch.no_grad():
            if self.training:
                other = self.b.weight.data if self.kind == "follows" else h.T @ x / len(x)
                self.k.weight.data = 0.9 * self.k.weight.data + 0.1 * other
            target = self.k(x)
        return self.end((h + target).relu())


@pytest.mark.parametrize(
    ("make", "written"),
    [
        (lambda: Teacher(True), "teacher.weight, which every stage"),
        (SharedNorm, "norm.num_batches_tracked, which every stage"),
        (lambda: Follows("follows"), "k.weight, and looks at b.weight, which another stage trains"),
    ],
)
def test_what_several_stages_would_write_is_refused_apart_and_trained_inline(make, written):
    for runtime in ("inline", "threads"):
        trainer = ll.Trainer(ll.split(make(), cuts=["b"], example=DATA[0]), optimizer=sgd, runtime=runtime)
        if runtime == "inline":
            assert trainer.fit(DATA)["status"] == "finished"
            continue
        with pytest.raises(ll.LocalLearnError, match=f"cuts: 'b' .* the forward pass writes into {written}"):
            trainer.fit(DATA)


def test_a_process_keeps_the_frozen_weights_that_its_stages_compute_with():
    """And lets go of all others: those that other stages train, and frozen ones that gradients pass."""
    network = ll.split(Teacher(False), cuts=["a"], example=DATA[0])
    network.run_apart()
    network.release([1])
    state = network.model.state_dict()
    assert {name for name, value in state.items() if value.isnan().any()} == {"a.weight", "a.bias"}
