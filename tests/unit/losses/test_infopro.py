import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import reference_losses as slow
import small
from locallearn.config import ObjectiveConfig, RunConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.errors import ConfigError
from locallearn.losses.infopro import WEIGHTS, default_weights, weights_at

IMAGE = ImageShape(3, 8, 5)
PRINTED = {2: ((5, 1), (0, 0)), 4: ((6, 0), (1, 2)), 8: ((5, 0), (0, 2)), 16: ((5, 0.05), (0.2, 0.5))}
"""(l1, l2) of the first module and of the last but one: ResNet-32, contrastive."""


@pytest.mark.parametrize("depth", [2, 4, 8, 16])
def test_weights_run_from_the_printed_first_pair_to_the_printed_last(depth):
    ends = default_weights("resnet32", depth)
    first, last = PRINTED[depth]
    assert weights_at(ends, 1, depth) == first
    if depth > 2:
        assert weights_at(ends, depth - 1, depth) == pytest.approx(last)


@given(st.lists(st.floats(0, 10), min_size=4, max_size=4), st.integers(3, 20), st.data())
def test_weights_are_linear_in_the_module(ends, depth, data):
    k = data.draw(st.integers(1, depth - 1))
    for i in (0, 1):
        expected = ends[i] + (ends[i + 2] - ends[i]) * (k - 1) / (depth - 2)
        assert weights_at(tuple(ends), k, depth)[i] == pytest.approx(expected, abs=1e-12)


def test_elsewhere_the_nearest_depth_and_resnet32_stand_in():
    table = WEIGHTS["resnet32"]
    assert default_weights("resnet32", 3) == table[4]
    assert default_weights("resnet32", 5) == table[4]
    assert default_weights("resnet32", 12) == table[16]
    assert default_weights("resnet32", 40) == table[16]
    assert default_weights("resnet8", 2) == table[2]
    assert default_weights("resnet110", 8) == (5, 0, 0, 1)


def network_of(depth=3, **objective):
    config = RunConfig(method="infopro", model="tiny-resnet", depth=depth, objective=ObjectiveConfig(**objective))
    return build_network(config, IMAGE)


def batch():
    torch.manual_seed(0)
    return small.batch_of(torch.rand(6, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 0, 1, 2, 1, 3]))


@pytest.mark.parametrize("form", ["contrastive", "cross-entropy"])
def test_loss_is_the_weighted_sum_of_the_terms_written_out(form):
    network = network_of(4, infopro_loss=form, infopro_weights=(3, 1, 1, 2)).double()
    data, features = batch(), batch().images
    for k, module in enumerate(network, start=1):
        features = module(features).detach()
        loss = module.objective(features, data)
        if k == 4:
            assert set(loss.terms) == {"cross_entropy"}
            continue
        rebuilt = slow.plain_bce(module.objective.decoder(features), data.pixels)
        out = module.objective.head(features)[0]
        if form == "contrastive":
            second = slow.plain_supervised_contrastive(out, data.labels, 0.07).item()
        else:
            second = F.cross_entropy(out, data.labels).item()
        l1, l2 = {1: (3, 1), 2: (2, 1.5), 3: (1, 2)}[k]
        assert loss.total.shape == (1,)
        assert loss.total.item() == pytest.approx(l1 * rebuilt + l2 * second, rel=1e-9)
        assert loss.terms["reconstruction"].item() == pytest.approx(rebuilt)
        assert loss.terms[form.replace("-", "_")].item() == pytest.approx(second)


def test_swapped_weights_are_caught():
    data = batch()
    network = network_of(2, infopro_weights=(5, 1, 0, 0)).double()
    module = next(iter(network))
    right = module.objective(module(data.images), data).total.item()
    module.objective.weights = module.objective.weights[::-1]
    assert module.objective(module(data.images), data).total.item() != pytest.approx(right, rel=1e-3)


def test_the_normalised_image_as_target_is_caught():
    """Reconstruction is of the pixels, not of what the network sees."""
    data = batch()
    module = next(iter(network_of(2).double()))
    features = module((data.images - 0.5) / 0.25)
    normalised = small.batch_of(data.images, data.labels)
    wrong = type(normalised)(normalised.images, normalised.labels, (data.pixels - 0.5) / 0.25, 0)
    right = module.objective(features, data).terms["reconstruction"]
    assert module.objective(features, wrong).terms["reconstruction"].item() != pytest.approx(right.item(), rel=1e-3)


def test_contrastive_projections_are_no_class_scores_and_have_the_asked_size():
    network = network_of(3, projection=24)
    modules = list(network)
    data = small.batch_of(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1]))
    features = modules[0](data.images)
    assert modules[0].objective.head(features).shape == (1, 4, 24)
    assert modules[0].logits(features) is None
    assert modules[0].objective(features, data).logits is None
    assert len(network.all_logits(data.images)) == 1
    assert torch.equal(network(data.images), network.all_logits(data.images)[-1][0])


def test_a_classifier_that_never_learns_has_no_say():
    modules = list(network_of(4, infopro_loss="cross-entropy", infopro_weights=(5, 0, 0, 2)))
    features = modules[0](torch.rand(4, 3, 8, 8))
    assert modules[0].logits(features) is None
    assert modules[1].logits(modules[1](features)) is not None


def test_the_last_module_is_that_of_dgl():
    dgl = RunConfig(method="dgl", model="tiny-resnet", depth=3)
    expected = list(build_network(dgl, IMAGE))[-1].state_dict()
    last = list(network_of(3))[-1].state_dict()
    assert last.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in last.items())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            RunConfig(method="infopro", model="tiny-resnet", depth=2, width=(2,)),
            r"width: \(2,\).*splits in depth only",
        ),
        (
            RunConfig(model="tiny-resnet", depth=2, width=(2,), objective=ObjectiveConfig(loss="infopro")),
            "width: 2 is not valid; expected 1 with InfoPro, which splits in depth only",
        ),
        (
            RunConfig(method="infopro", objective=ObjectiveConfig(loss="predsim")),
            "objective.loss: 'predsim' is not valid; expected infopro with method infopro",
        ),
    ],
)
def test_what_does_not_go_together_is_one_line(config, message):
    with pytest.raises(ConfigError, match=message):
        build_network(config, IMAGE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"infopro_weights": (1.0, 2.0)}, "objective.infopro_weights: .* expected four numbers, or none"),
        ({"infopro_weights": (1.0, 2.0, -1.0, 0.0)}, "objective.infopro_weights: -1.0"),
        ({"infopro_loss": "mse"}, "objective.infopro_loss: 'mse' is not valid; expected one of contrastive"),
        ({"temperature": 0.0}, "objective.temperature: 0.0"),
        ({"projection": 0}, "objective.projection: 0"),
        ({"predsim_weight": 1.5}, "objective.predsim_weight: 1.5"),
        ({"predsim_inputs": 0}, "objective.predsim_inputs: 0"),
    ],
)
def test_wrong_settings_are_one_line(settings, message):
    with pytest.raises(ConfigError, match=message):
        ObjectiveConfig(**settings)


def test_gradients_are_those_of_the_weighted_sum():
    data = batch()
    module = next(iter(network_of(3, infopro_weights=(3, 2, 0, 0)).double()))
    objective = module.objective
    features = module(data.images).detach().requires_grad_()
    found = torch.autograd.grad(objective(features, data).total.sum(), [features, *objective.parameters()])
    rebuilt = F.binary_cross_entropy(torch.sigmoid(objective.decoder(features)), data.pixels)
    second = slow.plain_supervised_contrastive(objective.head(features)[0], data.labels, 0.07)
    expected = torch.autograd.grad(3 * rebuilt + 2 * second, [features, *objective.parameters()])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-10)
