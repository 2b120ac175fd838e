import dataclasses

import pytest
from torch import nn

from locallearn.config import ObjectiveConfig, RunConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.core.methods import methods
from locallearn.errors import ConfigError

IMAGE = ImageShape(3, 8, 5)


def layout(method, depth, width, **objective):
    config = RunConfig(method=method, depth=depth, width=width, objective=ObjectiveConfig(**objective))
    return methods.get(method)(config)


def shown(found):
    """(groups, channel groups, loss, head) of every module, and whether the classifier is decoupled."""
    return [
        (m.groups, m.channel_groups, m.objective.loss, m.objective.head) for m in found.modules
    ], found.decoupled_classifier


CLASSIFIER = (1, 1, "cross-entropy", "0c1f")


@pytest.mark.parametrize(
    ("method", "depth", "width", "objective", "modules", "decoupled"),
    [
        ("e2e", 1, (1,), {}, [CLASSIFIER], False),
        ("dgl", 2, (1,), {}, [(1, 1, "cross-entropy", "1c2f"), CLASSIFIER], False),
        ("gn-dgl", 2, (2,), {}, [(2, 2, "cross-entropy", "1c2f")] * 2, True),
        ("gn-dgl", 2, (4, 1), {}, [(4, 4, "cross-entropy", "1c2f"), CLASSIFIER], False),
        ("gn-dgl", 1, (4,), {}, [(4, 4, "cross-entropy", "1c2f")], True),
        ("infopro", 3, (1,), {}, [(1, 1, "infopro", "1c2f")] * 2 + [CLASSIFIER], False),
        ("dgl", 3, (1,), {"loss": "infopro"}, [(1, 1, "infopro", "1c2f")] * 2 + [CLASSIFIER], False),
        ("predsim", 2, (1,), {}, [(1, 1, "predsim", "1c2f")] * 2, True),
        ("gn-dgl", 2, (2, 1), {"loss": "predsim"}, [(2, 2, "predsim", "1c2f"), (1, 1, "predsim", "1c2f")], True),
        ("single-thread", 1, (4,), {}, [(1, 4, "cross-entropy", "0c1f")], False),
    ],
)
def test_layouts(method, depth, width, objective, modules, decoupled):
    assert shown(layout(method, depth, width, **objective)) == (modules, decoupled)


@pytest.mark.parametrize(("method", "depth", "width"), [("e2e", 1, (1,)), ("dgl", 2, (1,)), ("gn-dgl", 2, (2,))])
def test_the_classifier_has_the_head_that_is_asked_for(method, depth, width):
    config = RunConfig(method=method, model="tiny-resnet", depth=depth, width=width)
    asked = dataclasses.replace(config, objective=ObjectiveConfig(classifier_head="1c2f"))
    heads = [build_network(c, IMAGE).stages[-1].objective for c in (config, asked)]
    kinds = [[type(layer).__name__ for layer in head.modules()] for head in heads]
    assert [kind.count("GroupLinear") for kind in kinds] == [1, 2]
    assert [sum(len(p.shape) == 4 for p in head.parameters()) for head in heads] == [0, 1]  # a convolution


@pytest.mark.parametrize(("of", "hidden"), [("group", 8), ("module", 4)])
def test_the_heads_of_a_module_have_the_width_each_or_together(of, hidden):
    """Of a model of half the usual width, heads have half as much."""
    objective = ObjectiveConfig(head="0c2f", head_width=16, head_width_of=of)
    config = RunConfig(method="gn-dgl", model="tiny-resnet", depth=2, width=(2,), objective=objective)
    head = build_network(config, IMAGE).stages[0].objective
    first, second = (layer for layer in head.modules() if type(layer).__name__ == "GroupLinear")
    assert (first.weight.shape[0], second.weight.shape) == (2 * hidden, (2 * 5, hidden))


def test_what_a_head_width_is_of_is_checked():
    with pytest.raises(ConfigError, match=r"objective.head_width_of: 'node' is not valid; expected .*group.*module"):
        ObjectiveConfig(head_width_of="node")  # type: ignore[arg-type]


def test_a_head_that_a_classifier_cannot_have():
    with pytest.raises(ConfigError, match=r"objective.classifier_head: 'mlp-sr' is not valid; expected <n>c<m>f"):
        ObjectiveConfig(classifier_head="mlp-sr")


def test_classifiers_have_neither_penalty_nor_stop_gradient_and_keep_label_smoothing():
    found = layout("dgl", 2, (1,), label_smoothing=0.1).modules[-1].objective
    assert (found.diversity_weight, found.stop_gradient, found.label_smoothing) == (0.0, False, 0.1)


@pytest.mark.parametrize(
    ("method", "depth", "width", "objective", "message"),
    [
        ("e2e", 2, (1,), {}, "depth: 2 is not valid; expected 1 with method e2e"),
        ("e2e", 1, (2,), {}, r"width: \(2,\) is not valid; expected 1 with method e2e"),
        ("e2e", 1, (1,), {"loss": "predsim"}, "objective.loss: 'predsim' .* expected cross-entropy with method e2e"),
        ("dgl", 2, (2,), {}, r"expected 1 \(use gn-dgl for groups\) with method dgl"),
        ("infopro", 2, (2,), {}, r"expected 1 \(InfoPro splits in depth only\) with method infopro"),
        ("infopro", 2, (1,), {"loss": "cross-entropy"}, "expected infopro with method infopro"),
        ("predsim", 2, (1,), {"loss": "infopro"}, "expected predsim with method predsim"),
        ("dgl", 2, (1,), {"loss": "masked-pixels"}, "expected a loss on whole images with method dgl, or method mae"),
        ("dgssl", 2, (1,), {"loss": "patch-infonce"}, "whole images with method dgssl, or method greedy-infomax"),
        ("single-thread", 2, (2,), {}, "depth: 2 is not valid; expected 1 with method single-thread"),
        ("single-thread", 1, (2,), {"loss": "predsim"}, "expected cross-entropy with method single-thread"),
    ],
)
def test_what_a_method_does_not_take_is_one_line(method, depth, width, objective, message):
    with pytest.raises(ConfigError, match=message):
        layout(method, depth, width, **objective)


def build(method, depth, width, model="tiny-resnet", **objective):
    config = RunConfig(
        method=method, model=model, depth=depth, width=width, objective=ObjectiveConfig(**objective), seed=4
    )
    return build_network(config, IMAGE)


@pytest.mark.parametrize(
    ("method", "width", "objective", "message"),
    [
        ("dgl", 1, {"loss": "next-token"}, "'next-token' is not valid; expected another loss, like cross-entropy"),
        ("dgl", 1, {"loss": "nt-xent"}, "expected a loss on one view, like cross-entropy, with method dgl; "),
        ("dgssl", 1, {"loss": "predsim"}, "expected a loss on two views of every image, like nt-xent, with method"),
        ("gn-dgl", 2, {"loss": "infopro"}, "width: 2 is not valid; expected 1 with InfoPro, .* have other losses"),
        ("dgl", 1, {"head": "shared"}, "expected a head of images, such as 1c2f; shared reads the unembedding"),
    ],
)
def test_a_refusal_names_what_was_asked_for_and_what_would_be_right(method, width, objective, message):
    with pytest.raises(ConfigError, match=message):
        build(method, 2, (width,), **objective)


def test_k1_baseline_has_local_heads_and_a_decoupled_classifier():
    network = build("gn-dgl", 1, (4,))
    assert network.nodes == [("1", 1), ("1", 2), ("1", 3), ("1", 4), ("classifier", 1)]
    first, classifier = network
    assert first.objective.head.groups == 4
    assert len(classifier.blocks) == 0
    assert classifier.objective.head.linears[0].weight.shape == (5, 16)


def test_single_thread_splits_every_convolution_but_the_one_that_sees_the_image():
    network = build("single-thread", 1, (4,))
    assert network.nodes == [("1", 1)]
    groups = {name: m.groups for name, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    assert groups.pop("stages.0.blocks.stem.conv") == 1
    assert set(groups.values()) == {4}
    backbone = build("gn-dgl", 1, (4,)).stages[0].blocks.state_dict()
    own = network.stages[0].blocks.state_dict()
    assert all((own[name] == value).all() for name, value in backbone.items())  # the same split network, other losses


def test_shortcuts_are_the_losses_by_name():
    for method, long in (("predsim", "gn-dgl"), ("infopro", "dgl")):
        short = build(method, 3, (1,)).state_dict()
        same = build(long, 3, (1,), loss=method).state_dict()
        assert short.keys() == same.keys()
        assert all((short[name] == value).all() for name, value in same.items())


def test_a_users_own_method():
    @methods.register("last-half")
    def last_half(config):
        found = methods.get("gn-dgl")(config)
        first = dataclasses.replace(found.modules[0], objective=ObjectiveConfig(loss="cross-entropy", head="0c1f"))
        return dataclasses.replace(found, modules=(first, *found.modules[1:]))

    network = build("last-half", 2, (2,))
    assert [len(module.objective.head.convs) for module in network] == [0, 3, 0]
