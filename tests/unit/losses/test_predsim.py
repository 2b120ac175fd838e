import pytest
import torch
import torch.nn.functional as F

import reference_losses as slow
import small
from locallearn.config import ObjectiveConfig, RunConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.errors import ConfigError

IMAGE = ImageShape(3, 8, 5)


def network_of(depth=2, width=1, model="tiny-resnet", **objective):
    config = RunConfig(
        method="predsim", model=model, depth=depth, width=(width,), objective=ObjectiveConfig(**objective)
    )
    return build_network(config, IMAGE).double()


def batch(n=6):
    torch.manual_seed(0)
    return small.batch_of(torch.randn(n, 3, 8, 8, dtype=torch.float64), torch.arange(n) % 4)


def scramble(network):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


@pytest.mark.parametrize("weight", [0.99, 0.5])
@pytest.mark.parametrize("model", ["tiny-resnet", "tiny-vgg"])
def test_loss_is_the_formula_written_out(weight, model):
    data = batch()
    network = network_of(4, model=model, predsim_weight=weight)
    scramble(network)
    features = data.images
    for module in list(network)[:-1]:
        features = module(features).detach()
        loss = module.objective(features, data)
        compared = module.objective.similarity.layer(features if features.dim() == 4 else features[..., None, None])
        rows = [[c.std() if len(c) > 1 else c[0] for c in image] for image in compared.flatten(2)]
        compared = torch.stack([torch.stack(row) for row in rows])
        sim = slow.plain_similarity_loss(compared, data.labels, 5)
        scores = F.linear(
            features.flatten(1), module.objective.classifier.linear.weight, module.objective.classifier.linear.bias
        )
        pred = F.cross_entropy(scores, data.labels)
        assert loss.total.item() == pytest.approx(((1 - weight) * pred + weight * sim).item(), rel=1e-9)
        assert loss.terms["similarity"].item() == pytest.approx(sim.item(), rel=1e-9)
        assert loss.terms["cross_entropy"].item() == pytest.approx(pred.item(), rel=1e-9)


def test_sim_alone_has_no_classifier_and_pred_alone_no_similarity():
    data = batch()
    both, sim, pred = (next(iter(network_of(predsim_weight=w, diversity_weight=0.0))) for w in (0.5, 1.0, 0.0))
    for one in (sim, pred):
        one.objective.load_state_dict(both.objective.state_dict(), strict=False)
    features = both(data.images)
    losses = [module.objective(features, data) for module in (both, sim, pred)]
    assert [set(loss.terms) for loss in losses] == [
        {"similarity", "cross_entropy"},
        {"similarity"},
        {"cross_entropy"},
    ]
    assert losses[1].logits is None
    assert sim.logits(features) is None
    assert sim.objective.classifier is None
    assert pred.objective.similarity is None
    expected = 0.5 * losses[1].total + 0.5 * losses[2].total
    torch.testing.assert_close(losses[0].total, expected, rtol=1e-12, atol=0)


def test_classifiers_start_at_zero_and_similarity_layers_do_not():
    for module in list(network_of(3, 2))[:-1]:
        assert module.objective.classifier.linear.weight.abs().sum() == 0
        assert module.objective.similarity.layer.weight.abs().min(1).values.sum() > 0


def test_every_module_has_the_local_loss_and_the_classifier_is_decoupled():
    for width in (1, 2):
        modules = list(network_of(3, width))
        assert [module.name for module in modules] == ["1", "2", "3", "classifier"]
        assert ["similarity" in dict(module.objective.named_children()) for module in modules] == [True] * 3 + [False]


def test_diversity_is_added_between_the_groups_classifiers():
    data = batch()
    network = network_of(2, 2, diversity_weight=0.5)
    scramble(network)
    module = next(iter(network))
    features = module(data.images)
    loss = module.objective(features, data)
    parts = 0.99 * loss.terms["similarity"] + 0.01 * loss.terms["cross_entropy"] + 0.5 * loss.terms["diversity"]
    assert loss.terms["diversity"].min() > 0
    torch.testing.assert_close(loss.total, parts, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("width", "objective", "message"),
    [
        (
            2,
            {"predsim_weight": 1.0},
            "objective.diversity_weight: 0.5 is not valid; expected 0 with objective.predsim",
        ),
        (8, {"stop_gradient": False}, "width: 8 is not valid; expected fewer than the 8 channels with predsim"),
    ],
)
def test_what_does_not_go_together_is_one_line(width, objective, message):
    with pytest.raises(ConfigError, match=message):
        network_of(2, width, **objective)


def test_the_setting_of_pooling_is_used():
    sizes = [
        next(iter(network_of(predsim_inputs=limit))).objective.classifier.linear.inputs
        for limit in (10_000, 512, 300, 64)
    ]
    assert sizes == [512, 512, 256, 64]  # 8 channels of 8x8, 8x8, 4x8, 2x4
