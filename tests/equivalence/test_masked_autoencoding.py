"""Masked autoencoding: the loss is the formula, K = 1 a plain loop, and nothing leaks between modules or patches."""

import dataclasses
import json

import pytest
import torch

import small
from locallearn.config import (
    AugmentConfig,
    MaskingConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ProbeConfig,
)
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.costs.memory import ActivationMeter
from locallearn.costs.nodes import cost
from locallearn.data.datasets import load
from locallearn.data.patches import draw_visible, patches, shown
from locallearn.data.store import ImageStore
from locallearn.losses.masked import hidden_error, standardised
from locallearn.nn.vit import to_maps, to_tokens
from locallearn.recipes.named import recipe
from locallearn.training import runs
from locallearn.training.checkpoint import load as load_checkpoint
from locallearn.training.configured import Training
from locallearn.training.export import export, load_exported
from locallearn.training.finished import open_run
from locallearn.training.observer import Quiet
from locallearn.training.optim import learning_rate
from locallearn.training.probe import probe
from locallearn.training.record import RunFolder
from locallearn.training.setup import resolve

IMAGE = ImageShape(1, 8, 10)
ADAM = OptimizerConfig(name="adam", learning_rate=1e-3, weight_decay=0.0)
CROPS = AugmentConfig(resized_crop=(0.5, 1.0), flip=0.0)


def config(depth=2, **changes):
    masking = MaskingConfig(decoder_width=16, **changes.pop("masking", {}))
    return small.config(
        "mae", depth, (1,), model="vit-nano", optimizer=ADAM, augment=CROPS,
        objective=ObjectiveConfig(masking=masking), **changes,
    )  # fmt: skip


def training_of(given, folder):
    dataset = load(given.data)
    return Training(resolve(given, dataset), dataset, RunFolder(folder), Quiet())


def tensors_of(run):
    return load_checkpoint(sorted((run / "checkpoints").glob("step-*"))[-1]).tensors


# --- the loss --------------------------------------------------------------------------------------------------


def slow_error(rebuilt, images, visible, side, normalised):
    """The formula, number by number."""
    errors = []
    for image, pixels in enumerate(images):
        n_columns = pixels.shape[2] // side
        for patch in range(rebuilt.shape[1]):
            if patch in visible[image].tolist():
                continue
            top, left = patch // n_columns * side, patch % n_columns * side
            places = [(top + r, left + s) for r in range(side) for s in range(side)]
            target = [pixels[c, y, x].item() for y, x in places for c in range(len(pixels))]
            if normalised:
                mean = sum(target) / len(target)
                variance = sum((value - mean) ** 2 for value in target) / (len(target) - 1)
                target = [(value - mean) / (variance + 1e-6) ** 0.5 for value in target]
            found = rebuilt[image, patch].tolist()
            errors.append(sum((a - b) ** 2 for a, b in zip(found, target, strict=True)) / len(target))
    return sum(errors) / len(errors)


@pytest.mark.parametrize("normalised", [True, False])
def test_the_loss_is_the_formula(normalised):
    torch.manual_seed(0)
    images, rebuilt = torch.rand(3, 2, 4, 8), torch.randn(3, 8, 8)
    visible = draw_visible(3, 8, 3, torch.Generator().manual_seed(1))
    target = standardised(patches(images, 2)) if normalised else patches(images, 2)
    expected = slow_error(rebuilt, images, visible, 2, normalised)
    assert hidden_error(rebuilt, target, visible).item() == pytest.approx(expected, rel=1e-5)
    everything = (rebuilt - target).square().mean().item()  # visible patches counted too
    assert abs(everything - expected) > 0.01


def test_a_patch_of_one_colour_has_target_zero():
    assert standardised(torch.full((1, 2, 4), 0.3)).abs().max() < 1e-3


def test_visible_patches_have_no_part_in_the_loss():
    rebuilt, target = torch.randn(2, 6, 4, requires_grad=True), torch.randn(2, 6, 4)
    visible = torch.tensor([[0, 3], [1, 5]])
    hidden_error(rebuilt, target, visible).backward()
    touched = rebuilt.grad.abs().sum(2) > 0
    assert touched.tolist() == [[p not in row for p in range(6)] for row in visible.tolist()]


# --- training --------------------------------------------------------------------------------------------------


def plain_loop(given, folder, grid=(4, 4), wrong=False):
    """Masked autoencoding as one would write it, with one loss and one optimizer."""
    training = training_of(given, folder)
    network = build_network(given, IMAGE)
    (module,) = network
    stem, *blocks = module.blocks
    decoder = module.objective.decoder
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, foreach=True)
    whole = ImageStore(training.dataset.train, training.dataset, given.augment, "cpu", given.seed)
    step = 0
    for epoch in range(given.train.epochs):
        pairs = zip(training.train_store.epoch(epoch, 32), whole.epoch(epoch, 32), strict=True)
        for masked, batch in pairs:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(given, step, 5)
            cut = patches(batch.images, 2)
            seen = torch.stack([cut[i][rows] for i, rows in enumerate(masked.visible)])
            places = torch.stack([stem.places[rows] for rows in masked.visible])
            x = to_maps(stem.linear(seen) + places, (1, masked.visible.shape[1]))
            for block in blocks:
                x = block(x)
            inner = decoder.linear(decoder.norm(to_tokens(x)))
            full = decoder.hidden.expand(len(inner), 16, inner.shape[2])
            full = full.scatter(1, masked.visible[..., None].expand_as(inner), inner) + decoder.places
            rebuilt = decoder.out(to_tokens(decoder.blocks(to_maps(full, grid))))
            target = patches(batch.pixels, 2)
            variance, mean = torch.var_mean(target, 2, keepdim=True)
            error = (rebuilt - (target - mean) / (variance + 1e-6).sqrt()).square().mean(2)
            hidden = torch.ones_like(error).scatter(1, masked.visible, 0.0)
            loss = error.mean() if wrong else (error * hidden).sum() / (error.numel() - masked.visible.numel())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
    return {f"network/stages.0.{name}": value for name, value in module.state_dict().items()}


@pytest.fixture(scope="module")
def one_module(tmp_path_factory):
    run = tmp_path_factory.mktemp("mae") / "run"
    runs.train(config(1), run)
    return tensors_of(run)


def test_one_module_is_a_plain_loop(one_module, tmp_path):
    torch.set_num_threads(1)
    plain = plain_loop(config(1), tmp_path)
    assert [name for name, value in plain.items() if not torch.equal(one_module[name], value)] == []


def test_a_loop_with_visible_patches_in_its_loss_is_another_training(one_module, tmp_path):
    plain = plain_loop(config(1), tmp_path, wrong=True)
    assert any((one_module[name] - value).abs().max() > 1e-3 for name, value in plain.items())


def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    from equivalence.test_resume import assert_same_end

    whole = runs.train(config(), tmp_path / "whole")
    with pytest.raises(small.Killed):
        runs.train(config(), tmp_path / "killed", small.KillAt(7))
    assert_same_end(tmp_path / "whole", tmp_path / "killed", (whole, runs.resume(tmp_path / "killed")))


def batch_and_network(depth=3, folder=None):
    training = training_of(config(depth), folder)
    return next(iter(training.train_store.epoch(0, 32))), training


def test_hidden_patches_never_reach_the_encoder(tmp_path):
    batch, training = batch_and_network(folder=tmp_path)
    store = training.train_store
    images = batch.pixels.clone()
    hidden = torch.ones(32, 16).scatter(1, batch.visible, 0.0) == 1
    spoilt = patches(images, 2)
    spoilt[hidden] = torch.rand_like(spoilt[hidden])
    spoilt = spoilt.unflatten(1, (4, 4)).unflatten(3, (2, 2)).squeeze(-1).transpose(2, 3).reshape(32, 1, 8, 8)
    normalised = (spoilt - store._mean) / store._std
    assert not torch.equal(normalised, (images - store._mean) / store._std)
    a, b = batch.images, shown(normalised, 2, batch.visible)
    for module in training.network:
        a, b = module(a), module(b)
        assert torch.equal(a, b)
        assert a.shape == (32, 64, 1, 4)
    both = images, spoilt
    first, second = (training.network.features((x - store._mean) / store._std) for x in both)
    assert not torch.equal(first, second)  # in evaluation every patch is seen


def test_masks_depend_on_epoch_and_step_alone(tmp_path):
    store = batch_and_network(folder=tmp_path)[1].train_store
    first, again, later = (list(store.epoch(epoch, 32)) for epoch in (0, 0, 1))
    assert all(torch.equal(a.visible, b.visible) for a, b in zip(first, again, strict=True))
    assert torch.equal(next(iter(store.epoch(0, 32, start=2))).visible, first[2].visible)
    assert not torch.equal(first[0].visible, first[1].visible)
    assert not torch.equal(first[0].visible, later[0].visible)


def test_no_gradient_crosses_a_cut(tmp_path):
    batch, training = batch_and_network(folder=tmp_path)
    steps = list(training.nodes.steps.values())
    features = batch.images
    for step in steps:
        out = step.module(features)
        loss = step.module.objective(out, batch).total
        found = [
            torch.autograd.grad(loss.sum(), list(s.module.parameters()), retain_graph=True, allow_unused=True)
            for s in steps
        ]
        reached = [any(g is not None and g.abs().sum() > 0 for g in gradients) for gradients in found]
        assert reached == [other is step for other in steps]
        features, _ = step(features, batch)
        assert not features.requires_grad


def test_a_missing_detach_is_caught(tmp_path):
    batch, training = batch_and_network(folder=tmp_path)
    first, second, _ = training.network
    loss = second.objective(second(first(batch.images)), batch).total.sum()
    gradients = torch.autograd.grad(loss, list(first.blocks.parameters()))
    assert all(g.abs().sum() > 0 for g in gradients)


# --- what it costs, and what it learns ---------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2])
def test_predicted_memory_is_what_a_step_keeps(tmp_path, depth):
    batch, training = batch_and_network(depth, tmp_path)
    expected = cost(config(depth), IMAGE)
    features = batch.images
    for step, node in zip(training.nodes.steps.values(), expected.nodes, strict=True):
        with ActivationMeter(step.module.parameters()) as meter:
            features, _ = step(features, batch)
        assert meter.peak_bytes == node.activation_bytes
        assert features.numel() * features.element_size() == node.output_bytes


def test_a_node_counts_visible_patches_and_its_decoder():
    masked, whole = cost(config(1), IMAGE), cost(dataclasses.replace(config(1), method="dgl"), IMAGE)
    assert masked.inference_macs == masked.e2e_macs
    blocks = masked.modules[0].block_macs
    assert whole.modules[0].block_macs / 5 < blocks < whole.modules[0].block_macs / 4
    assert masked.modules[0].head_macs > 16 * 12 * 16**2


def test_what_is_exported_sees_every_patch(tmp_path):
    runs.train(config(2), tmp_path / "run")
    opened = open_run(tmp_path / "run")
    export(opened, tmp_path, ("safetensors", "torch-export"))
    pixels = torch.rand(3, 1, 8, 8)
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (opened.dataset.mean, opened.dataset.std))
    with torch.no_grad():
        expected = opened.network((pixels - mean) / std)
        assert expected.shape == (3, 64)
        torch.testing.assert_close(load_exported(tmp_path)(pixels), expected)
        found = torch.export.load(tmp_path / "network.pt2").module()(pixels)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert "kNN" in opened.evaluate().protocol


def test_it_learns_on_digits(tmp_path):
    """Probes of what has learned for some epochs, and of weights as they were drawn."""
    given = recipe("mae")
    given = dataclasses.replace(given, train=dataclasses.replace(given.train, epochs=12, threads=1, evaluate_every=0))
    idle = dataclasses.replace(given, optimizer=dataclasses.replace(ADAM, learning_rate=0.0))
    idle = dataclasses.replace(idle, train=dataclasses.replace(idle.train, epochs=2))
    found = []
    for name, one in (("learned", given), ("drawn", idle)):
        runs.train(one, tmp_path / name)
        record = probe(open_run(tmp_path / name), ProbeConfig(depth="last", epochs=30))
        found.append(record["points"][-1]["accuracy"])
    assert found[0] > found[1] + 0.03
    lines = [json.loads(line) for line in (tmp_path / "learned" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["nodes"][0]["loss"] for line in lines if line["event"] == "train"]
    assert losses[-1] < 0.8 * losses[0]
