"""Predsim and mlp-sr of all groups at once equal a loop over plain per-group networks, forward and backward."""

import pytest
import torch
import torch.nn.functional as F

import reference
import reference_losses as slow
import small
from locallearn.config import ObjectiveConfig
from locallearn.losses import functional
from locallearn.losses.objectives import ObjectiveInput, objectives
from locallearn.nn import groups as grouped_layers
from locallearn.nn import heads

CLASSES, BATCH = 5, 6
LABELS = torch.tensor([0, 1, 2, 3, 0, 1])
PREDSIM_NAMES = {"layer": "similarity.layer", "linear": "classifier.linear"}
MLP_NAMES = {"convs": "head.convs", "linears": "head.linears"}


def build(shape, groups, **settings):
    """An objective with random weights everywhere, in float64."""
    torch.manual_seed(0)
    given = ObjectiveInput(ObjectiveConfig(**settings), shape, groups, CLASSES, (3, 8), 1.0, "tiny", (1, 2))
    objective = objectives.get(settings["loss"])(given).double()
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.copy_(torch.randn_like(parameter) / parameter[0].numel() ** 0.5 + 0.1)
    features = torch.randn(BATCH, *shape, dtype=torch.float64, requires_grad=True)
    return objective, features


def looped(features, groups, plain, config, classes=CLASSES):
    """Losses, scores and gradient of the features: one group after the other."""
    scores, losses = [], []
    for g, network in enumerate(plain):
        seen = slow.seen_by(features, g, groups, config.stop_gradient)
        if isinstance(network, slow.PlainPredSim):
            compared, logits = network(seen)
            w = config.predsim_weight
            unlike = slow.plain_similarity_loss(compared, LABELS, classes)
            losses.append((1 - w) * F.cross_entropy(logits, LABELS) + w * unlike)
        else:
            logits = network(seen)
            losses.append(F.cross_entropy(logits, LABELS))
        scores.append(logits)
    if config.diversity_weight and groups > 1:
        penalties = reference.plain_diversity(scores, LABELS, config.diversity_temperature)
        losses = [loss + config.diversity_weight * penalty for loss, penalty in zip(losses, penalties, strict=True)]
    return torch.stack(scores), torch.stack(losses)


def compare(objective, features, plain, names):
    """The grouped objective next to the loop: scores, losses, and gradients of features and of every weight."""
    groups = len(plain)
    for g, network in enumerate(plain):
        slow.copy_rows(network.double(), objective, names, g, groups)
    config = objective.config
    loss = objective(features, small.batch_of(features.detach(), LABELS))
    expected_scores, expected = looped(features, groups, plain, config)
    close(loss.logits, expected_scores, "scores")
    close(loss.total, expected, "losses")
    own = torch.autograd.grad(loss.total.sum(), [features, *objective.parameters()])
    gradients = dict(zip([name for name, _ in objective.named_parameters()], own[1:], strict=True))
    for g, network in enumerate(plain):
        wanted = torch.autograd.grad(expected[g], [features, *network.parameters()], retain_graph=True)
        channels = slice(g * features.shape[1] // groups, (g + 1) * features.shape[1] // groups)
        close(own[0][:, channels], wanted[0][:, channels], f"gradient of features, group {g}")
        others = wanted[0].clone()
        others[:, channels] = 0
        assert others.abs().sum() == 0
        for (name, _), gradient in zip(network.named_parameters(), wanted[1:], strict=True):
            rows = slow.rows_of(gradients[slow.grouped_name(name, names)], g, groups)
            close(rows.reshape(gradient.shape), gradient, f"gradient of {name}, group {g}")


def close(actual, expected, what):
    """A bias before batch norm has gradient zero, and rounding leaves 1e-10 of it beside others of 10."""
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-9, msg=lambda m: f"{what}: {m}")


def compare_predsim(shape=(8, 4, 4), groups=2, stop_gradient=True, pooled=(2, 2), **settings):
    seen = shape[0] if stop_gradient else shape[0] // groups
    limit = seen * pooled[0] * pooled[1]
    objective, features = build(
        shape, groups, loss="predsim", stop_gradient=stop_gradient, predsim_inputs=limit, **settings
    )
    plain = [slow.PlainPredSim(seen, pooled, CLASSES, len(shape) == 3) for _ in range(groups)]
    compare(objective, features, plain, PREDSIM_NAMES)


def compare_mlp(shape=(8, 16, 16), groups=2, stop_gradient=True):
    seen = shape[0] if stop_gradient else shape[0] // groups
    objective, features = build(shape, groups, loss="cross-entropy", head="mlp-sr", stop_gradient=stop_gradient)
    plain = [slow.PlainMlpHead(seen, shape[-1], CLASSES, len(shape) == 3) for _ in range(groups)]
    compare(objective, features, plain, MLP_NAMES)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("shape", [(8, 4, 4), (8,)])
def test_grouped_predsim_equals_loop(shape, groups, stop_gradient):
    compare_predsim(shape, groups, stop_gradient)


@pytest.mark.parametrize("pooled", [(4, 4), (2, 4), (1, 2), (1, 1)])
def test_every_pooling_equals_loop(pooled):
    compare_predsim(pooled=pooled)


@pytest.mark.parametrize("weight", [0.01, 0.5])
@pytest.mark.parametrize("diversity", [0.0, 2.0])
def test_every_weight_equals_loop(weight, diversity):
    compare_predsim(predsim_weight=weight, diversity_weight=diversity)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("stop_gradient", [True, False])
@pytest.mark.parametrize("shape", [(8, 16, 16), (8, 8, 8), (8,)])
def test_grouped_mlp_sr_equals_loop(shape, groups, stop_gradient):
    compare_mlp(shape, groups, stop_gradient)


def test_a_leak_between_groups_in_the_similarity_layer_is_caught(monkeypatch):
    def dense(x, seen, weight, stride, groups, first):
        return F.conv2d(x, weight, stride=stride, padding=1)

    monkeypatch.setattr(grouped_layers._StopGradientConv, "apply", dense)
    with pytest.raises(AssertionError, match="gradient of features"):
        compare_predsim()


@pytest.mark.parametrize("check", [compare_predsim, compare_mlp])
def test_a_leak_between_groups_in_a_classifier_is_caught(monkeypatch, check):
    monkeypatch.setattr(heads, "stop_gradient_vectors", lambda x, g: x[None].expand(g, *x.shape))
    with pytest.raises(AssertionError, match="gradient of features"):
        check()


def test_mixed_up_groups_are_caught(monkeypatch):
    split = heads.split_vectors
    monkeypatch.setattr(heads, "split_vectors", lambda x, g: split(x, g).flip(0))
    for check in (compare_predsim, compare_mlp):
        with pytest.raises(AssertionError, match="scores"):
            check(stop_gradient=False)


def test_a_similarity_without_centring_is_caught(monkeypatch):
    def uncentred(x, labels, classes):
        unit = F.normalize(x, dim=-1)
        targets = functional.similarity_matrix(F.one_hot(labels, classes).to(x.dtype)[None])
        return (unit @ unit.mT - targets).square().mean((1, 2))

    monkeypatch.setattr("locallearn.losses.predsim.similarity_loss", uncentred)
    with pytest.raises(AssertionError, match="losses"):
        compare_predsim()


def test_a_biased_standard_deviation_is_caught():
    """The reference divides by positions less one; on 16 positions the difference shows in the similarity."""
    objective, features = build((8, 4, 4), 1, loss="predsim", diversity_weight=0.0)
    maps = objective.similarity.layer(features).flatten(2)
    right = objective.similarity(features)[0]
    assert torch.allclose(right, maps.std(-1))
    assert not torch.allclose(right, maps.std(-1, correction=0), rtol=1e-3)
