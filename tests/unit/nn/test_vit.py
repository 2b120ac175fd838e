"""Vision transformers as lists of blocks: against plain modules, counted, and refused where they do not fit."""

import dataclasses
import json
import math

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import small
from locallearn.config import AugmentConfig, ModificationConfig, ObjectiveConfig, RunConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.data.patches import draw_visible, patches, shown
from locallearn.errors import ConfigError
from locallearn.losses.objectives import Objective
from locallearn.nn.backbones import build_backbone
from locallearn.nn.macs import counting
from locallearn.nn.vit import Attend, PatchEmbedding, TransformerBlock, n_heads, sine_cosine
from locallearn.training import runs

IMAGE = ImageShape(3, 8, 5)


def seeded(make):
    torch.manual_seed(0)
    return make()


def test_patches_are_rows_of_the_image():
    images = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    found = patches(images, 2)
    assert found.shape == (2, 6, 12)
    number = 0
    for top in (0, 2):
        for left in (0, 2, 4):
            pixels = [images[1, c, top + r, left + s] for r in (0, 1) for s in (0, 1) for c in range(3)]
            assert found[1, number].tolist() == [int(value) for value in pixels]
            number += 1


def test_positions_are_the_formula():
    found = sine_cosine(2, 3, 8)
    for row in range(2):
        for column in range(3):
            expected = [
                wave(place / 10_000 ** (q / 2))
                for place in (column, row)
                for wave in (math.sin, math.cos)
                for q in range(2)
            ]
            assert found[3 * row + column].tolist() == pytest.approx(expected, abs=1e-6)
    assert sine_cosine(2, 2, 30).shape == (4, 30)  # of any width


EVERY_BATCH = "inline, threads, cuda-graphs or distributed"


@pytest.mark.parametrize(("width", "heads"), [(192, 6), (64, 2), (48, 1), (120, 3), (168, 4), (30, 1)])
def test_heads_divide_the_width(width, heads):
    assert n_heads(width) == heads


def test_attention_is_torchs_multihead_attention():
    ours, theirs = Attend(4), nn.MultiheadAttention(32, 4, batch_first=True)
    x = torch.randn(3, 7, 32)
    with torch.no_grad():
        mixed = ours(nn.functional.linear(x, theirs.in_proj_weight, theirs.in_proj_bias))
        expected, _ = theirs(x, x, x, need_weights=False)
        torch.testing.assert_close(theirs.out_proj(mixed), expected)


@pytest.mark.parametrize("last", [False, True])
def test_a_block_is_torchs_pre_norm_encoder_layer(last):
    block = seeded(lambda: TransformerBlock(64, last))
    plain = nn.TransformerEncoderLayer(
        64, n_heads(64), 256, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    qkv, _, out = block.attention
    up, _, down = block.mlp
    pairs = [
        (plain.self_attn.in_proj_weight, qkv.weight), (plain.self_attn.in_proj_bias, qkv.bias),
        (plain.self_attn.out_proj.weight, out.weight), (plain.self_attn.out_proj.bias, out.bias),
        (plain.linear1.weight, up.weight), (plain.linear1.bias, up.bias),
        (plain.linear2.weight, down.weight), (plain.linear2.bias, down.bias),
    ]  # fmt: skip
    with torch.no_grad():
        for theirs, ours in pairs:
            theirs.copy_(ours)
        maps = torch.randn(2, 64, 3, 5)
        expected = plain.train()(maps.flatten(2).transpose(1, 2))
        expected = nn.functional.layer_norm(expected, (64,), eps=1e-6) if last else expected
        torch.testing.assert_close(block(maps).flatten(2).transpose(1, 2), expected, rtol=1e-4, atol=1e-5)


def test_tokens_of_some_patches_are_those_of_the_whole_image():
    stem = seeded(lambda: PatchEmbedding(3, 8, 2, 32))
    images, visible = torch.rand(4, 3, 8, 8), draw_visible(4, 16, 5, torch.Generator().manual_seed(3))
    whole, some = stem(images).flatten(2), stem(shown(images, 2, visible))
    assert some.shape == (4, 32, 1, 5)
    for image in range(4):
        torch.testing.assert_close(some[image, :, 0], whole[image][:, visible[image]])


def test_every_image_has_its_own_patches_and_all_are_drawn_alike():
    visible = draw_visible(4000, 16, 4, torch.Generator().manual_seed(0))
    assert (visible.diff(dim=1) > 0).all()
    counts = visible.flatten().bincount(minlength=16) / 4000
    assert (counts - 0.25).abs().max() < 0.03
    assert len(visible.unique(dim=0)) > 1000


@pytest.mark.parametrize(
    ("model", "size", "channels", "positions"),
    [("vit-tiny", 32, 192, 8), ("vit-tinyx0.5", 32, 96, 8), ("vit-nano", 8, 64, 4)],
)
def test_models(model, size, channels, positions):
    network = build_network(RunConfig(method="dgl", model=model, depth=2), ImageShape(3, size, 10)).eval()
    features = network.stages[0](torch.rand(2, 3, size, size))
    assert features.shape == (2, channels, positions, positions)
    assert network(torch.rand(2, 3, size, size)).shape == (2, 10)


def test_vit_tiny_has_the_parameters_of_deit_tiny():
    """Of DeiT-Tiny's 12 blocks, 192 wide (5,338,560 with two layer norms each), and the last norm."""
    with torch.device("meta"):
        blocks = [block.make(groups=1, dense=True) for block in build_backbone("vit-tiny", 3, 32).blocks]
    each = 12 * 192**2 + (3 + 1 + 4 + 1) * 192 + 4 * 192
    assert sum(p.numel() for b in blocks[1:] for p in b.parameters()) == 12 * each + 2 * 192
    assert sum(p.numel() for p in blocks[0].parameters()) == 192 * (48 + 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 3}, "patch_size: 3 is not valid; expected a divisor of 8"),
        ({"patch_size": 16}, "patch_size: 16 .* a divisor of 8"),
        ({"model": "resnet8", "patch_size": 2}, "patch_size: 2 .* expected nothing with resnet8"),
        ({"model": "tiny-vgg", "patch_size": 2}, "patch_size: 2 .* expected nothing with tiny-vgg"),
        ({"method": "gn-dgl", "width": (2,)}, "width: 2 .* expected 1 with vit-nano, whose attention mixes all"),
        ({"method": "gn-dgl", "width": (5,)}, "width: 5 .* expected 1 with vit-nano"),
        ({"method": "single-thread", "depth": 1, "width": (2,)}, "width: 2 .* expected 1 with vit-nano"),
        ({"method": "mae", "width": (2,)}, "width: .* expected 1 with method mae"),
        ({"method": "mae", "model": "resnet8"}, "model: 'resnet8' .* vision transformer .* with method mae"),
        ({"method": "mae", "model": "tiny-vgg"}, "model: 'tiny-vgg' .* vision transformer"),
        ({"method": "mae", "patch_size": 8}, "patch_size: 8 .* nothing can be hidden"),
        ({"method": "mae", "runtime": "sequential"}, f"runtime: .* {EVERY_BATCH} with method mae"),
        ({"method": "mae", "runtime": "asynchronous"}, f"runtime: .* {EVERY_BATCH} with method mae"),
        ({"method": "mae", "objective": ObjectiveConfig(loss="nt-xent")}, "objective.loss: .* masked-pixels"),
        ({"objective": ObjectiveConfig(loss="masked-pixels")}, "objective.loss: .* method mae"),
        ({"method": "dgssl", "objective": ObjectiveConfig(loss="masked-pixels")}, "objective.loss: .* method dgssl"),
    ],
)  # fmt: skip
def test_what_goes_not_together_is_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build_network(RunConfig(**{"method": "gn-dgl", "model": "vit-nano", "depth": 2} | changes), IMAGE)
    assert "\n" not in str(caught.value)


def test_a_patch_of_one_number_cannot_be_normalised():
    with pytest.raises(ConfigError, match="objective.masking.normalised: True .* false where a patch is"):
        build_network(RunConfig(method="mae", model="vit-nano", patch_size=1), ImageShape(1, 8, 10))


WEIGHTED = (nn.Linear, nn.Conv2d, Attend)


@pytest.mark.parametrize(("model", "method", "size"), [("vit-tiny", "e2e", 32), ("vit-nano", "dgl", 8)])
def test_counts_agree_with_torchs_flop_counter(model, method, size):
    """Attention and linear layers, biases left out; its counter knows attention as matrix products alone."""
    depth = 1 if method == "e2e" else 3
    network = build_network(RunConfig(method=method, model=model, depth=depth), ImageShape(3, size, 10)).eval()
    images = torch.rand(2, 3, size, size)
    blocks = network.stages[0].blocks
    with (
        torch.no_grad(),
        sdpa_kernel(SDPBackend.MATH),
        counting(blocks) as calls,
        FlopCounterMode(display=False) as flops,
    ):
        blocks(images)
    weighted = [call for call in calls if isinstance(call.layer, WEIGHTED)]
    assert any(isinstance(call.layer, Attend) for call in weighted)
    biases = sum(call.outputs for call in weighted if not isinstance(call.layer, Attend))
    assert 2 * (sum(call.macs for call in weighted) - biases) == flops.get_total_flops()


@pytest.mark.parametrize("method", ["e2e", "dgl", "infopro", "predsim", "simclr", "dgssl", "dgssl-llm"])
def test_every_method_of_one_group_trains_it(tmp_path, method):
    depth = 1 if method in ("e2e", "simclr") else 2
    config = small.config(
        method, depth, (1,), model="vit-nano",
        objective=ObjectiveConfig(modification=ModificationConfig(scorer="self")),
        augment=AugmentConfig(resized_crop=(0.5, 1.0)),
        train=dataclasses.replace(small.TRAIN, epochs=1),
    )  # fmt: skip
    summary = runs.train(config, tmp_path / "run")
    events = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [node["loss"] for node in events[1]["nodes"]]
    assert len(losses) == depth + (method == "predsim")  # whose classifier is decoupled
    assert all(math.isfinite(loss) for loss in losses)
    assert 0 <= summary["accuracy"]["last_layer"] <= 1


def test_objectives_see_whole_images_by_default():
    assert Objective.masking is None
