"""Probes leave the network alone and each other too, and cost one forward pass a batch."""

import contextlib
import dataclasses
import math

import pytest
import torch
from torch import nn

import small
from locallearn.config import AugmentConfig, DataConfig, ProbeConfig
from locallearn.errors import ConfigError, DivergedError
from locallearn.training import depth_features, probe_heads, runs
from locallearn.training import probe as probing
from locallearn.training.depth_features import FeatureReader, places, pooled
from locallearn.training.finished import open_run
from locallearn.training.probe import probe

QUICK = ProbeConfig(epochs=2, batch_size=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe") / "run"
    runs.train(small.config(depth=2, width=(2, 2), data=DataConfig(train_limit=320, test_limit=90)), folder)
    return folder


@pytest.fixture
def run(folder):
    return open_run(folder)


def accuracies(record):
    return [(point["train_accuracy"], point["accuracy"], point["loss"]) for point in record["points"]]


def state(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def touched(network, before):
    """What differs of a network, bit for bit, and what has a gradient."""
    after = network.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    return changed + [name for name, parameter in network.named_parameters() if parameter.grad is not None]


@pytest.mark.parametrize("changes", [{}, {"cache_mib": 0}, {"augment": "run"}, {"head": "mlp", "hidden": 8}])
def test_the_network_is_not_touched(run, changes):
    before = state(run.network)
    probe(run, dataclasses.replace(QUICK, **changes))
    assert touched(run.network, before) == []
    assert not run.network.training


@contextlib.contextmanager
def in_train_mode(network):
    network.train()
    with torch.no_grad():
        yield
    network.eval()


@contextlib.contextmanager
def with_gradient(network):
    network.eval()
    yield


@pytest.mark.parametrize(("leak", "seen"), [(in_train_mode, "running_mean"), (with_gradient, "weight")])
def test_a_leak_would_be_seen(run, monkeypatch, leak, seen):
    before = state(run.network)
    monkeypatch.setattr(depth_features, "frozen", leak)
    probe(run, dataclasses.replace(QUICK, cache_mib=0))
    assert any(name.endswith(seen) for name in touched(run.network, before))


def alone(run, config, place):
    """The same, with one probe only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probing, "places", lambda network, depth: [place])
        return accuracies(probe(run, config))[0]


@pytest.mark.parametrize("changes", [{"optimizer": "sgd"}, {"head": "mlp", "hidden": 8}, {"cache_mib": 0}])
def test_each_probe_is_the_probe_trained_alone(run, changes):
    config = dataclasses.replace(QUICK, **changes)
    together = accuracies(probe(run, config))
    assert together == [alone(run, config, place) for place in places(run.network)]


def test_probes_that_share_something_would_be_seen(run, monkeypatch):
    draws = torch.Generator().manual_seed(0)

    def shared(head, groups, *keys):
        for parameter in head.parameters():
            parameter.data.uniform_(-0.1, 0.1, generator=draws)

    monkeypatch.setattr(probe_heads, "initialise", shared)
    together = accuracies(probe(run, QUICK))
    assert together != [alone(run, QUICK, place) for place in places(run.network)]


def test_cached_features_give_what_streamed_ones_do(run):
    cached, streamed = (probe(run, dataclasses.replace(QUICK, cache_mib=mib)) for mib in (100, 0))
    assert cached["protocol"]["features"] == "held in fp32"
    assert streamed["protocol"]["features"] == "computed every epoch"
    assert cached["protocol_text"] == streamed["protocol_text"]
    for a, b in zip(accuracies(cached), accuracies(streamed), strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    coarse = probe(run, dataclasses.replace(QUICK, cache_precision="bf16"))
    assert "held in bf16" in coarse["protocol_text"]
    for a, b in zip(accuracies(coarse), accuracies(cached), strict=True):
        assert a[2] == pytest.approx(b[2], rel=0.02)
        assert a != b


@pytest.mark.parametrize("depth", ["all", "modules", "last"])
def test_a_depth_curve_costs_one_forward_pass_a_batch(run, depth):
    """Counted at the network's first and last block: neither depends on how many depths are probed."""
    calls = {"first": 0, "last": 0}
    blocks = [block for module in run.network for block in module.blocks]
    hooks = [
        block.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
        for name, block in (("first", blocks[0]), ("last", blocks[-1]))
    ]
    size, test = run.config.train.evaluate_batch_size, 1
    for mib, expected in ((100, math.ceil(320 / size) + test), (0, 2 * 320 // 32 + test)):
        calls.update(first=0, last=0)
        record = probe(run, dataclasses.replace(QUICK, depth=depth, cache_mib=mib))
        assert record["forward_passes"] == expected
        assert calls == {"first": expected + 1, "last": expected + 1}  # one image tells the sizes
    for hook in hooks:
        hook.remove()


def test_a_linear_probe_equals_a_plain_loop(run):
    """Adam and the cosine, written out, on features of one forward pass; initial weights are the probe's."""
    config = dataclasses.replace(QUICK, depth="last", standardise=False, weight_decay=0.01)
    reader = FeatureReader(run.network, places(run.network, "last"), "fp32")
    train = next(run.store(run.dataset.train).ordered(1000))
    x_ND = reader(train.images)[0]
    layer = nn.Linear(x_ND.shape[1], 10)
    probe_heads.initialise(layer, 1, 0, "probe", places(run.network)[-1].depth)
    optimizer = torch.optim.Adam(layer.parameters(), weight_decay=0.01)
    store = probing._train_store(run, config)
    for epoch in range(2):
        for step, chosen in enumerate(store.order(epoch, 32)):
            optimizer.param_groups[0]["lr"] = 0.01 * 0.5 * (1 + math.cos(math.pi * (10 * epoch + step) / 20))
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(x_ND[chosen]), train.labels[chosen]).backward()
            optimizer.step()
    test = next(run.store(run.dataset.test).ordered(1000))
    scores = layer(reader(test.images)[0])
    point = probe(run, config)["points"][0]
    assert point["accuracy"] == pytest.approx((scores.argmax(1) == test.labels).double().mean().item())
    assert point["loss"] == pytest.approx(nn.functional.cross_entropy(scores, test.labels).item(), rel=1e-4)


def test_standardised_probes_are_linear():
    config = ProbeConfig()
    head = probe_heads.probe_head(5, 3, config)
    head(torch.randn(64, 5) * 3 + 7)
    head.eval()
    x, y = torch.randn(2, 4, 5)
    torch.testing.assert_close(head(0.3 * x + 0.7 * y), 0.3 * head(x) + 0.7 * head(y))
    mlp = probe_heads.probe_head(5, 3, ProbeConfig(head="mlp", hidden=7)).eval()
    assert not torch.allclose(mlp(0.3 * x + 0.7 * y), 0.3 * mlp(x) + 0.7 * mlp(y))


def test_probes_learn(run):
    assert all(point["accuracy"] > 0.45 for point in probe(run, ProbeConfig(epochs=60, batch_size=64))["points"])


def test_augmentation_changes_the_features(run):
    plain, changed = (accuracies(probe(run, dataclasses.replace(QUICK, augment=a))) for a in ("none", "standard"))
    assert plain != changed
    assert changed == accuracies(probe(run, dataclasses.replace(QUICK, augment="run")))  # a supervised run's is it
    flips = AugmentConfig(crop_padding=0, padding_mode="constant", flip=0.5)
    run.config = dataclasses.replace(run.config, augment=flips)
    assert changed != accuracies(probe(run, dataclasses.replace(QUICK, augment="run")))


def test_the_seed_is_all_that_chance_depends_on(run):
    first, again, other = (accuracies(probe(run, dataclasses.replace(QUICK, seed=seed))) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_a_rate_that_is_too_high_stops_with_one_line(run):
    with pytest.raises(DivergedError, match="the loss of probe 1 became NaN or infinite in epoch 1"):
        probe(run, dataclasses.replace(QUICK, optimizer="sgd", learning_rate=1e38))


def test_places_are_block_ends(run):
    found = places(run.network)
    assert [(p.module, p.block, p.depth, p.ends_module) for p in found] == [
        (1, "stem", 1, False), (1, "1.0", 2, True), (2, "1.1", 3, False), (2, "2.0", 4, True),
    ]  # fmt: skip
    assert [p.depth for p in places(run.network, "modules")] == [2, 4]
    assert [p.depth for p in places(run.network, "last")] == [4]


def test_a_reader_reads_what_modules_hand_on(run):
    images = next(run.store(run.dataset.test).ordered(7)).images
    read = FeatureReader(run.network, places(run.network, "modules"), "fp32")(images)
    x = images
    with torch.no_grad():
        for module, found in zip(list(run.network)[:2], read, strict=True):
            x = module(x)
            assert torch.equal(found, x.mean((2, 3)))


def test_pooling():
    x = torch.arange(32.0).view(1, 2, 4, 4)
    assert pooled(x).tolist() == [[7.5, 23.5]]
    assert pooled(x, 2).tolist() == [[2.5, 4.5, 10.5, 12.5, 18.5, 20.5, 26.5, 28.5]]
    assert torch.equal(pooled(x, 9), x.flatten(1))
    assert torch.equal(pooled(x[:, :, 0, 0], 3), x[:, :, 0, 0])
    assert pooled(x.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs: 0 is not valid; expected a whole number of at least 1"),
        ({"batch_size": 1}, "batch_size: 1 is not valid; expected at least 2"),
        ({"learning_rate": 0}, "learning_rate: 0 is not valid; expected a finite number above 0"),
        ({"head": "tree"}, "head: 'tree' is not valid; expected one of linear, mlp"),
        ({"cache_mib": -1}, "cache_mib: -1 is not valid"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ConfigError, match=message):
        ProbeConfig(**changes)
