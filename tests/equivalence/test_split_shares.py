"""Losses that a model computes for earlier stages: each stage trains its own share of them."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
import transformers as tf
from torch import nn

import locallearn as ll
from locallearn.core.local_step import walk
from locallearn.core.rehearsal import SplitWarning
from locallearn.nn.pieces import Share


class Layer(nn.Module):
    """A penalty on what it computes, given beside the features, kept in an attribute, or both summed by the model."""

    def __init__(self, kind):
        super().__init__()
        self.linear, self.gate, self.kind, self.penalty = nn.Linear(8, 8), nn.Linear(8, 4), kind, None

    def forward(self, x):
        penalty = self.gate(x).softmax(-1).mean(0).pow(2).sum()
        x = self.linear(x).relu()
        if self.kind == "kept":
            self.penalty = penalty
            return x
        return x, penalty


class Experts(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.layers = nn.ModuleList(Layer(kind) for _ in range(4))
        self.fc, self.kind = nn.Linear(8, 5), kind

    def forward(self, x, labels):
        total = 0
        for layer in self.layers:
            if self.kind == "kept":
                x = layer(x)
            else:
                x, penalty = layer(x)
                total = total + penalty
        if self.kind == "kept":
            total = sum(layer.penalty for layer in self.layers)
        if self.kind == "squared":
            total = total**2
        logits = self.fc(x)
        return {"loss": F.cross_entropy(logits, labels) + 0.5 * total / 2, "logits": logits}


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def batch(seed=0):
    draw = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(6, 8, generator=draw), "labels": torch.randint(5, (6,), generator=draw)}


def split(kind, **more):
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SplitWarning)
        return ll.split(Experts(kind), example=batch(), cuts=["layers.1"], optimizer=sgd, **more)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("break_it", [False, True])
@pytest.mark.parametrize("kind", ["given", "kept"])
def test_stages_train_the_penalties_of_their_own_layers(kind, break_it):
    network = split(kind)
    place = "penalty" if kind == "kept" else 1
    assert set(network.pieces[0].shares) == {Share(f"layers.{i}", place, 0.25) for i in (0, 1)}
    assert network.pieces[0].crossing == ()
    model, head = copy.deepcopy(network.model), copy.deepcopy(network.objectives[0].head)
    optimizers = [sgd([model.get_parameter(name) for name in part.parameters]) for part in network.pieces]
    optimizers[0].add_param_group({"params": list(head.parameters())})
    for seed in range(3):
        given = batch(seed)
        metrics = network.step(given)
        x, labels = given["x"], given["labels"]
        for k, layers in enumerate((model.layers[:2], model.layers[2:])):
            penalties = []
            for layer in layers:
                out = layer(x)
                x, penalty = (out, layer.penalty) if kind == "kept" else out
                penalties.append(penalty)
            weight = 0.0 if break_it and k == 0 else 0.25
            scores = model.fc(x) if k else head(x)[0]
            share = torch.stack(penalties).sum() * weight
            optimizers[k].zero_grad()
            (F.cross_entropy(scores, labels) + share).backward()
            optimizers[k].step()
            x = x.detach()
        assert "loss/1" in metrics
    found, expected = network.merge().state_dict(), model.state_dict()
    near = all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)
    assert near is not break_it


@pytest.mark.parametrize("kind", ["given", "kept"])
def test_stages_alone_train_the_same(kind):
    whole = split(kind)
    alone = copy.deepcopy(whole)
    whole.step(batch(7))  # leaves penalties in attributes
    whole = copy.deepcopy(alone)
    alone.run_apart()
    for network in (whole, alone):
        network.set_optimizers(sgd)
    for seed in range(3):
        whole.walk(whole.steps, whole.given_batch(batch(seed)), index=seed)
        walk(alone.steps, alone.given_batch(batch(seed)), index=seed)
    assert same(whole, alone)


def test_what_the_loss_does_not_simply_add_is_said():
    with pytest.warns(SplitWarning, match=r"own loss uses .*layers.1.* of stage 1 beside its prediction"):
        network = ll.split(Experts("squared"), example=batch(), cuts=["layers.1"])
    assert network.pieces[0].shares == ()
    assert network.pieces[0].lost


def mixtral(**more):
    torch.manual_seed(0)
    config = tf.MixtralConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        output_router_logits=True,
        **more,
    )
    return tf.MixtralForCausalLM(config)


IDS = torch.randint(5, 64, (4, 9), generator=torch.Generator().manual_seed(0))
TEXT = {"input_ids": IDS, "labels": IDS, "attention_mask": torch.ones_like(IDS)}


def test_routers_of_experts_are_balanced_in_every_stage():
    gradients = []
    for weight in (0.0, 100.0):
        model = mixtral(router_aux_loss_coef=weight)
        network = ll.split(model, depth=2, example=TEXT, optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
        assert [piece.path for piece in network.pieces] == ["model.layers.1", ""]
        network.step(TEXT)
        gradients.append(network.model.model.layers[0].mlp.gate.weight.grad)
    logits = []
    hooks = [
        layer.mlp.gate.register_forward_hook(lambda _m, _a, out: logits.append(out[0]))
        for layer in model.model.layers
    ]
    model(**TEXT)
    for hook in hooks:
        hook.remove()
    balance = tf.models.mixtral.modeling_mixtral.load_balancing_loss_func
    loss = 50.0 * balance(tuple(logits[:2]), 4, 2, TEXT["attention_mask"])  # half of the layers
    (expected,) = torch.autograd.grad(loss, model.model.layers[0].mlp.gate.weight)
    assert expected.abs().max() > 1e-3
    assert torch.allclose(gradients[1] - gradients[0], expected, atol=1e-4)


def test_stages_that_balance_experts_together_do_not_run_alone():
    network = ll.split(mixtral(router_aux_loss_coef=0.1), depth=2, example=TEXT)
    with pytest.raises(ll.LocalLearnError, match="runtime: 'threads' is not valid; expected inline"):
        network.run_apart()
