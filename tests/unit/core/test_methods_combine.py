"""Every head with every loss, on ResNets, VGGs, transformers and users' own models: it trains, or says why not."""

import itertools

import pytest
import torch
from torch import nn

import locallearn as ll
import small
import user_models
from locallearn.config import ObjectiveConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.errors import ConfigError
from locallearn.nn.heads import heads

IMAGE = ImageShape(3, 8, 5)
HEADS = ("0c1f", "1c2f", "mlp-sr", "auglocal", "patches", "momentum", "flat", "wide-projector")
LOSSES = (
    "cross-entropy",
    "predsim",
    "infopro",
    "supervised-contrastive",
    "transport",
    "random-targets",
    "rebuilt-input",
    "input-similarity",
)
WITHOUT_HEAD = ("predsim", "random-targets", "rebuilt-input", "input-similarity")
"""Losses that have something of their own instead of an auxiliary head, or nothing."""
OF_TOKENS = {"shared", "terminal"}
"""Heads of users' own language models, which nothing of images has."""


def combined(model, method="dgl", width=1, **objective):
    """What a step of three modules leaves, or why there is none."""
    weight = 0.0 if objective["loss"] in LOSSES[3:4] + LOSSES[5:] else 0.5
    settings = ObjectiveConfig(diversity_weight=weight, **objective)
    config = small.config(method, 3, (width,), model=model, objective=settings)
    try:
        network = build_network(config, IMAGE).train()
    except ConfigError as error:
        return str(error)
    network.set_optimizers(lambda parameters: torch.optim.SGD(parameters, 0.01))
    found = network.step((torch.randn(6, 3, 8, 8), torch.arange(6) % 5))
    assert all(value.isfinite().all() for value in found.values())
    assert len([name for name in found if name.startswith("loss/")]) >= 3
    return "trains"


def test_every_head_is_tried():
    assert set(heads) - OF_TOKENS <= set(HEADS)


def pairs(part, of):
    """Every so many of all pairs of head and loss; all parts together are all pairs."""
    numbered = itertools.product(enumerate(HEADS), enumerate(LOSSES))
    return [(head, loss) for (i, head), (j, loss) in numbered if (i + j) % of == part]


@pytest.mark.parametrize(("part", "model"), list(enumerate(["tiny-resnet", "tiny-vgg", "vit-nano"])))
def test_every_head_trains_with_every_loss(part, model):
    """Each pair on one of the families."""
    torch.manual_seed(0)
    found = {(head, loss): combined(model, head=head, loss=loss) for head, loss in pairs(part, 3)}
    refused = {pair: text for pair, text in found.items() if text != "trains"}
    assert set(refused) == {(head, loss) for head, loss in found if loss in WITHOUT_HEAD and head != "1c2f"}
    assert all(text.startswith("objective.head: ") for text in refused.values())


def test_groups_go_with_every_head_and_nearly_every_loss():
    torch.manual_seed(0)
    chosen = [(head, loss) for head, loss in pairs(0, 4) if loss not in WITHOUT_HEAD]
    chosen += [("1c2f", loss) for loss in (*WITHOUT_HEAD, "infopro")]
    found = {(head, loss): combined("tiny-resnet", "gn-dgl", 2, head=head, loss=loss) for head, loss in chosen}
    refused = {pair: text for pair, text in found.items() if text != "trains"}
    assert {loss for _, loss in refused} == {"infopro", "rebuilt-input"}
    assert all("width: 2 is not valid" in text for text in refused.values())


def own_models():
    """Users' models, an example and cuts."""
    torch.manual_seed(0)
    images, labels = torch.rand(6, 3, 16, 16), torch.arange(6) % 5
    convolutions = [nn.Sequential(nn.Conv2d(3 if not i else 8, 8, 3, padding=1), nn.ReLU()) for i in range(3)]
    vgg = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    return {
        "vgg": (vgg, (images, labels), ["0", "1"]),
        "resnet": (user_models.ResNet(), (images[:, :2], labels), None),
    }


def split(model, **changes):
    module, example, cuts = own_models()[model]
    where = {"depth": 3} if cuts is None else {"cuts": cuts}
    try:
        network = ll.split(module, example=example, **where, **changes)
    except ConfigError as error:
        return str(error)
    found = network.step(example)
    assert all(value.isfinite().all() for value in found.values())
    return "trains"


@pytest.mark.parametrize("model", ["vgg", "resnet"])
def test_a_model_of_ones_own_takes_every_head(model):
    assert {head: split(model, head=head) for head in HEADS} == dict.fromkeys(HEADS, "trains")


@pytest.mark.parametrize("model", ["vgg", "resnet"])
def test_a_model_of_ones_own_takes_every_loss(model):
    assert {loss: split(model, objective=loss) for loss in LOSSES} == dict.fromkeys(LOSSES, "trains")


def test_transport_of_a_stage_is_what_it_adds():
    """Loss of the second stage of a plain model, written out; modules at once train the same."""
    module, (images, labels), cuts = own_models()["vgg"]
    options = {"loss": "transport", "options": {"tau": 0.25}, "head": "0c1f"}

    def made():
        settings = ObjectiveConfig(**options)
        return ll.split(
            module,
            example=(images, labels),
            cuts=cuts,
            objective="transport",
            head="0c1f",
            settings=settings,
            optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1),
        )

    network = made()
    first = module[0](images)
    second = module[1](first)
    plain = network.stages[1].objective.inner(second, small.batch_of(images, labels)).total.item()
    expected = plain + (second - first).square().mean().item() / (2 * 0.25)
    assert network.step((images, labels))["loss/2"].item() == pytest.approx(expected, rel=1e-5)
    weights = {}
    for runtime in ("inline", "threads"):
        trained = made()
        ll.Trainer(trained, runtime=runtime, threads=1, optimizer=lambda p: torch.optim.SGD(p, 0.1)).fit(
            [(images, labels)] * 3
        )
        weights[runtime] = trained.state_dict()
    assert all(torch.equal(value, weights["threads"][name]) for name, value in weights["inline"].items())
    without = ll.split(module, example=(images, labels), cuts=cuts, head="0c1f")
    assert without.step((images, labels))["loss/2"].item() != pytest.approx(expected, rel=1e-3)
