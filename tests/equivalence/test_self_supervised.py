"""Self-supervised methods are each other where they should be, and leak nothing."""

import dataclasses

import onnx
import pytest
import torch

import small
from locallearn.config import AugmentConfig, ModificationConfig, ObjectiveConfig, OptimizerConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.costs.nodes import CIFAR10, cost
from locallearn.costs.steps import dry_steps
from locallearn.errors import ConfigError, UsageError
from locallearn.losses.contrastive import nt_xent
from locallearn.recipes.named import recipe
from locallearn.training import runs
from locallearn.training.checkpoint import load
from locallearn.training.export import export, load_exported
from locallearn.training.finished import open_run

VIEWS = AugmentConfig(resized_crop=(0.3, 1.0), flip=0.0)
ADAM = OptimizerConfig(name="adam", learning_rate=1e-3, weight_decay=1e-6)
IMAGE = ImageShape(3, 8, 5)


def config(method, depth=3, width=(1,), modification=None, **objective):
    objective = ObjectiveConfig(temperature=0.5, modification=modification or ModificationConfig(), **objective)
    return small.config(method, depth, width, objective=objective, augment=VIEWS, optimizer=ADAM)


def weights_after(config, run):
    """Every weight and statistic after two epochs."""
    runs.train(config, run)
    tensors = load(sorted((run / "checkpoints").glob("step-*"))[-1]).tensors
    return {name: value for name, value in tensors.items() if name.startswith("network/")}


def assert_equal(a, b):
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_dgssl_of_one_module_is_simclr(tmp_path):
    assert_equal(
        weights_after(config("dgssl", 1), tmp_path / "a"), weights_after(config("simclr", 1), tmp_path / "b")
    )


def test_loss_modification_of_one_module_is_simclr(tmp_path):
    """The last module sees every pair, so no scorer is needed at all."""
    assert_equal(
        weights_after(config("dgssl-llm", 1), tmp_path / "a"), weights_after(config("simclr", 1), tmp_path / "b")
    )


EVERY_PAIR = [
    ModificationConfig(scorer="self", positive_ratio=1.0, negative_ratio=1.0),
    ModificationConfig(scorer="ema", positive_ratio=1.0, pairs="positive"),
    ModificationConfig(scorer="augmentation", positive_thresholds=(-9, -9), negative_thresholds=(9, 9)),
    ModificationConfig(scorer="self", difficulty="decreasing", positive_ratio=1.0, negative_ratio=1.0),
]


@pytest.mark.parametrize("modification", EVERY_PAIR, ids=["ratios", "positive only", "thresholds", "decreasing"])
def test_loss_modification_that_chooses_every_pair_is_dgssl(tmp_path, modification):
    changed = weights_after(config("dgssl-llm", modification=modification), tmp_path / "a")
    assert_equal(changed, weights_after(config("dgssl"), tmp_path / "b"))


def test_a_loss_modification_that_leaves_one_pair_out_is_another_training(tmp_path):
    modification = ModificationConfig(scorer="self", positive_ratio=0.95, pairs="positive")
    changed = weights_after(config("dgssl-llm", modification=modification), tmp_path / "a")
    with pytest.raises(AssertionError):
        assert_equal(changed, weights_after(config("dgssl"), tmp_path / "b"))


def test_every_loss_on_two_views_trains_as_simclr_and_as_modules(tmp_path):
    for loss in ("barlow-twins", "vicreg"):
        local = weights_after(config("dgssl", 1, loss=loss), tmp_path / f"{loss}-dgssl")
        assert_equal(local, weights_after(config("simclr", 1, loss=loss), tmp_path / f"{loss}-simclr"))
        assert runs.train(config("dgssl", 3, (2,), loss=loss), tmp_path / loss)["accuracy"]["last_layer"] > 0.2


def batch_of_views(images=8):
    torch.manual_seed(1)
    pixels = torch.rand(2 * images, 3, 8, 8)
    return small.batch_of(pixels, torch.arange(images).repeat(2))


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_every_group_has_a_loss_of_its_own_on_its_own_channels(stop_gradient):
    given = config("dgssl", 2, (4,), stop_gradient=stop_gradient)
    batch = batch_of_views()
    features = batch.images
    for module in build_network(given, IMAGE):
        out = module(features)
        loss = module.objective(out, batch).total
        projections = module.objective.head(out)
        assert projections.shape == (4, 16, 128)
        for g in range(4):
            torch.testing.assert_close(loss[g : g + 1], nt_xent(projections[g : g + 1], 0.5), rtol=1e-6, atol=1e-6)
            (gradient,) = torch.autograd.grad(loss[g], out, retain_graph=True)
            touched = {i for i, rows in enumerate(gradient.chunk(4, 1)) if rows.abs().sum() > 0}
            assert touched == {g}
        features = out.detach()


def test_batch_norm_sees_both_views_together():
    network = build_network(config("dgssl", 2), IMAGE).train()
    first, batch = next(iter(network)), batch_of_views()
    together = first(batch.images)
    alone = torch.cat([first(x) for x in batch.images.chunk(2)])
    assert not torch.allclose(together, alone)


def test_a_self_supervised_network_gives_pooled_features():
    network = build_network(config("dgssl", 2, (2,)), IMAGE).eval()
    images = torch.rand(3, 3, 8, 8)
    features = images
    for module in network:
        features = module(features)
    assert torch.equal(network(images), features.mean((2, 3)))
    assert network.nodes == [("1", 1), ("1", 2), ("2", 1), ("2", 2)]
    assert network.all_logits(images) == []


@pytest.mark.parametrize(
    ("method", "depth", "width", "objective", "message"),
    [
        ("simclr", 2, (1,), {}, r"depth: 2 .* expected 1 \(use dgssl for modules\)"),
        ("simclr", 1, (2,), {}, r"width: \(2,\) .* expected 1 \(use dgssl for groups\)"),
        ("dgssl", 2, (1,), {"loss": "cross-entropy"}, "objective.loss: 'cross-entropy' .* two views of every image"),
        ("dgssl", 2, (1,), {"loss": "nope"}, "objective.loss: 'nope'"),
        ("dgl", 2, (1,), {"loss": "nt-xent"}, "objective.loss: 'nt-xent' .* a loss on one view"),
        ("dgssl-llm", 2, (1,), {"loss": "nt-xent"}, "expected nt-xent-llm with method dgssl-llm"),
    ],
)
def test_what_goes_not_together_is_one_line(method, depth, width, objective, message):
    with pytest.raises(ConfigError, match=message):
        build_network(config(method, depth, width, **objective), IMAGE)


@pytest.mark.parametrize("runtime", ["sequential", "asynchronous"])
def test_other_runtimes_are_refused(runtime):
    given = dataclasses.replace(config("dgssl", 2), runtime=runtime)
    with pytest.raises(
        ConfigError, match="runtime: .* expected inline, threads, cuda-graphs or distributed with method dgssl"
    ):
        build_network(given, IMAGE)


def test_eight_modules_hold_at_most_half_of_what_end_to_end_holds_for_backward():
    """ResNet-50 on CIFAR-10, cut as in Fig. A.1; counted on tensors without data."""
    held = []
    for method, depth in (("simclr", 1), ("dgssl", 8)):
        given = dataclasses.replace(recipe(f"resnet50-{method}"), depth=depth)
        with torch.device("meta"):
            network = build_network(given, CIFAR10)
        train = dataclasses.replace(given.train, precision="fp32")
        held.append([module.activation_bytes for module in dry_steps(network, CIFAR10, train)])
    whole, local = held
    assert len(local) == 8
    assert max(local) <= whole[0] / 2
    assert sum(local) > whole[0]  # it is the peak that falls, and not the sum


def test_what_is_exported_gives_features_and_cost_counts_both_views(tmp_path):
    given = config("dgssl", 2)
    runs.train(given, tmp_path / "run")
    opened = open_run(tmp_path / "run")
    export(opened, tmp_path, ("safetensors", "onnx"))
    pixels = torch.rand(3, 1, 8, 8)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (opened.dataset.mean, opened.dataset.std))
    with torch.no_grad():
        expected = opened.network((pixels - mean) / std)
    torch.testing.assert_close(load_exported(tmp_path)(pixels), expected, rtol=1e-4, atol=1e-5)
    (output,) = onnx.load(tmp_path / "network.onnx").graph.output
    assert output.name == "features"
    one, two = cost(config("dgl", 2), IMAGE, batch_size=16), cost(given, IMAGE, batch_size=8)
    assert [n.output_bytes for n in one.nodes] == [n.output_bytes for n in two.nodes]
    assert two.inference_macs == two.e2e_macs == sum(stage.macs for stage in two.stages)


def test_a_network_without_a_classifier_does_not_predict(tmp_path):
    runs.train(config("simclr", 1), tmp_path / "run")
    with pytest.raises(UsageError, match="no classifier"):
        open_run(tmp_path / "run").predict(tmp_path)
