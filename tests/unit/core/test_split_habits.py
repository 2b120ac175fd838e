"""What users do to their own models before a split, and examples that are none."""

import copy

import pytest
import torch
from torch import nn

import locallearn as ll
import user_models

X = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(4)


def _mlp():
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5))


def test_a_hook_that_masks_a_gradient_masks_the_copy_s():
    torch.manual_seed(0)
    model, seen = _mlp(), []
    mask = torch.zeros(8, 8)
    mask[::2] = 1
    model[0].weight.register_hook(lambda gradient: seen.append(1) or gradient * mask)
    network = ll.split(model, depth=2, example=(X, Y), optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    seen.clear()
    network.step((X, Y))
    trained = network.merge()[0].weight
    assert seen == [1]
    assert torch.equal(trained[1::2], model[0].weight[1::2])
    assert not torch.equal(trained[::2], model[0].weight[::2])
    assert len(network.merge()[0].weight._backward_hooks) == 1


def test_an_optimizer_inside_the_backward_pass_is_refused():
    model = _mlp()
    model[2].weight.register_post_accumulate_grad_hook(lambda parameter: None)
    with pytest.raises(ll.LocalLearnError, match=r"2\.weight has a hook that runs after its gradient"):
        ll.split(model, depth=2, example=(X, Y))


class _Mixed(nn.Module):
    """Weights of two types, as models have that keep some in fp32."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8).double(), nn.Linear(8, 5)

    def forward(self, x):
        return self.c(self.b(torch.relu(self.a(x)).double()).float())


@pytest.mark.parametrize(("cut", "kind"), [("a", torch.float32), ("b", torch.float64)])
def test_heads_have_the_type_of_numbers_of_their_features(cut, kind):
    network = ll.split(_Mixed(), cuts=[cut], example=(X, Y))
    assert {p.dtype for p in network.objectives[0].parameters()} == {kind}
    assert all(value.isfinite() for value in network.step((X, Y)).values())


class _Forces(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = _mlp()

    def forward(self, x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(self.body(x).sum(), x, create_graph=True)[0]


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (lambda: torch.jit.script(_mlp()), lambda: X, "the model is in TorchScript"),
        (lambda: nn.Sequential(torch.jit.script(_mlp())), lambda: X, "0 is in TorchScript"),
        (_Forces, lambda: X, "a step on it fails"),
        (_mlp, lambda: X[:0], "have no examples"),
        (_mlp, lambda: torch.nested.nested_tensor([*X[:, None]]), "pad the examples to one length"),
        (lambda: nn.Linear(8, 5), lambda: X, "at most 1: this model has no legal cut"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_split_is_said_in_a_line(model, example, message):
    with pytest.raises(ll.LocalLearnError, match=message) as refused:
        ll.split(model(), depth=2, example=(example(), Y))
    assert "\n" not in str(refused.value)


def test_one_linear_layer_is_a_model():
    model = nn.Linear(8, 5)
    network = ll.split(model, depth=1, example=(X, Y), optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    loss = nn.functional.cross_entropy(model(X), Y)
    torch.testing.assert_close(network.step((X, Y))["loss"], loss)
    torch.testing.assert_close(
        network.merge().weight, model.weight - 0.1 * torch.autograd.grad(loss, model.weight)[0]
    )


class _Branches(nn.Module):
    """As feature pyramids are: parallel layers whose outputs come together at the end."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(8, 16)
        self.a, self.b, self.c = nn.Linear(16, 64), nn.Linear(16, 64), nn.Linear(16, 64)
        self.end = nn.Linear(192, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        return self.end(torch.relu(torch.cat([self.a(x), self.b(x), self.c(x)], 1)))


def test_balanced_stages_leave_no_branch_untrained():
    network = ll.split(_Branches(), depth=2, example=(X, Y), optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    before = {name: p.clone() for name, p in network.model.named_parameters()}
    network.step((X, Y))
    assert [name for name, p in network.model.named_parameters() if torch.equal(p, before[name])] == []


class _Reader(nn.Module):
    """A layer of a residual stream that reads a memory, as those of decoders do."""

    def __init__(self):
        super().__init__()
        self.mix, self.norm, self.query, self.out = (
            nn.Linear(16, 16, bias=False), nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        )  # fmt: skip

    def forward(self, x, memory):
        x = x + self.mix(x)
        return x + self.out(self.query(self.norm(x)).relu()) * memory


class _Reading(nn.Module):
    def __init__(self, first):
        super().__init__()
        self.memory, self.before = nn.Linear(8, 16), nn.Linear(8, first)
        self.start, self.layers = nn.Linear(first, 16), nn.ModuleList(_Reader() for _ in range(3))
        self.end = nn.Linear(16, 5)

    def forward(self, x):
        memory, x = self.memory(x), self.start(self.before(x))
        for layer in self.layers:
            x = layer(x, memory)
        return self.end(x)


@pytest.mark.parametrize("first", [8, 30])  # so that costs are most alike after the query, and after the norm
def test_balanced_cuts_leave_the_stream_of_a_layer_alone(first):
    """After a norm or a query inside a layer the stream jumps over a cut, too, which no submodule gives."""
    network = ll.split(_Reading(first), depth=2, example=(X, Y), optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    assert network.pieces[0].path == "layers.1.mix"
    assert [crossing.path for crossing in network.pieces[0].crossing] == ["memory"]
    apart = copy.deepcopy(network)
    ll.Trainer(network, runtime="inline").fit([(X, Y)] * 2)
    ll.Trainer(apart, runtime="threads").fit([(X, Y)] * 2)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), apart.parameters(), strict=True))


def test_a_forward_pass_that_takes_gradients_is_traced():
    network = ll.split(_Forces(), depth=1, example=(X, torch.rand(4, 8)))
    assert network.step((X, torch.rand(4, 8)))["loss"].isfinite()


@pytest.mark.filterwarnings("ignore::locallearn.core.rehearsal.SplitWarning")
def test_adamw_is_one_pass_where_the_memory_format_of_weights_cannot_change():
    """torch's pass updates wrong weights where format differs from that of the moments."""
    tokens = ll.split(user_models.Transformer(), depth=2, example=user_models.sequences())
    assert [step.optimizer.defaults["fused"] for step in tokens.steps] == [True, True]
    images = ll.split(user_models.ResNet(), depth=2, example=user_models.images())
    assert {step.optimizer.defaults["fused"] for step in images.steps} == {None}
    plain = copy.deepcopy(images)
    plain.set_optimizers(lambda parameters: torch.optim.AdamW(parameters, lr=1e-3))
    for network in (images, plain):
        for i in range(4):
            network.step(user_models.images())
            if i == 1:
                network.to(memory_format=torch.channels_last)
    pairs = zip(images.parameters(), plain.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
