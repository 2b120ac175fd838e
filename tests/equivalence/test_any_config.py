"""Every configuration either trains a step or is refused with one clear line."""

import dataclasses
import math

import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from locallearn.config import (
    AugmentConfig,
    DataConfig,
    ModificationConfig,
    ObjectiveConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainConfig,
)
from locallearn.core.assembly import build_network
from locallearn.core.local_step import LocalStep
from locallearn.core.methods import methods
from locallearn.data.datasets import load
from locallearn.data.store import ImageStore
from locallearn.errors import ConfigError
from locallearn.runtime.inline import InlineRuntime
from locallearn.training.optim import build_optimizer, learning_rate
from locallearn.training.scorers import build_scorer
from locallearn.training.setup import image_shape, resolve


def mostly(good, bad=()):
    """One wrong value in thirty draws, so that most examples get past most checks."""
    return st.sampled_from([*good * (1 + 30 * max(1, len(bad)) // len(good)), *bad])


depths = mostly([1, 2, 3, 4], [0, 5, 6])
widths = mostly([(1,), (2,), (4,), (8,)], [(), (3,), (0,), (2, 4, 2), (1, 2)])
cuts = mostly([("auto",), ("balanced",)], [(), ("stem",), ("conv1", "conv2"), ("1.0", "stem"), ("9.9",), ("2.0",)])
objectives = st.fixed_dictionaries(
    {
        "head": mostly(["0c1f", "0c2f", "1c1f", "1c2f", "2c2f"], ["1c0f", "c2f", "9c9f", ""]),
        "head_width": mostly([1, 8, 40], [0, -3]),
        "stop_gradient": st.booleans(),
        "diversity_weight": mostly([0.0, 0.5], [-1.0, math.inf]),
        "label_smoothing": mostly([0.0, 0.1], [1.0]),
        "modification": st.builds(
            ModificationConfig,
            scorer=st.sampled_from(["ema", "self", "augmentation", "pretrained"]),
            difficulty=st.sampled_from(["increasing", "decreasing"]),
            positive_ratio=st.sampled_from([0.01, 0.9, 1.0]),
            positive_thresholds=st.sampled_from([(), (), (), (0.3,)]),
        ),
    }
)
optimizers = st.fixed_dictionaries(
    {
        "name": mostly(["sgd", "adam"], ["rmsprop"]),
        "learning_rate": mostly([0.0, 0.1], [-1.0, math.nan]),
        "momentum": mostly([0.9], [1.0, 0.0]),
        "nesterov": st.booleans(),
        "clip_norm": mostly([0.0, 1.0], [-1.0]),
    }
)
trains = st.fixed_dictionaries(
    {
        "epochs": mostly([1, 3], [0]),
        "batch_size": mostly([2, 8], [1, 0]),
        "precision": mostly([None, "fp32", "bf16"], ["fp8"]),
        "channels_last": st.sampled_from([None, True, False]),
        "device": mostly(["cpu"], ["tpu", "cuda:99", "meta", ""]),
    }
)
augments = st.fixed_dictionaries(
    {
        "crop_padding": mostly([None, 0, 1, 7], [8, 100, -1]),
        "padding_mode": mostly([None, "reflect", "constant"], ["edge"]),
        "jitter": mostly([0.0], [0.5]),
        "flip": mostly([None, 0.5], [2.0]),
        "resized_crop": mostly([None, (0.2, 1.0)], [(0.0, 1.0)]),
    }
)
runs = st.fixed_dictionaries(
    {
        "method": mostly(sorted(methods), ["gn_dgl"]),
        "model": mostly(["tiny-resnet", "tiny-vgg", "tiny-resnetx2", "resnet8"], ["resnet9", "vgg6a-x2", "vgg16a"]),
        "depth": depths,
        "width": widths,
        "cut": cuts,
        "objective": objectives,
        "optimizer": optimizers,
        "train": trains,
        "augment": augments,
        "dropout": mostly([0.0, 0.2], [1.0]),
    }
)


def build(method, model, depth, width, cut, objective, optimizer, train, augment, dropout):
    return RunConfig(
        method=method,
        model=model,
        depth=depth,
        width=width,
        cuts=cut,
        dropout=dropout,
        objective=ObjectiveConfig(**objective),
        optimizer=OptimizerConfig(**optimizer),
        schedule=ScheduleConfig(warmup_epochs=1),
        train=TrainConfig(**train),
        augment=AugmentConfig(**augment),
        data=DataConfig(train_limit=20, test_limit=4),
    )


def train_a_step(config):
    dataset = load(config.data)
    config = resolve(config, dataset)
    network = build_network(config, image_shape(dataset))
    steps = [
        LocalStep(m, build_optimizer(config.optimizer, m.parameters()), config.train.precision or "fp32",
                  config.optimizer.clip_norm, config.seed)
        for m in network
    ]  # fmt: skip
    last = bool(config.train.channels_last)
    store = ImageStore(dataset.train, dataset, config.augment, "cpu", config.seed, last, network.views)
    batch = next(store.epoch(0, config.train.batch_size))
    batch = build_scorer(config, network, dataset).scored(batch)
    rate = learning_rate(config, 0, 10)
    (trained,) = InlineRuntime(steps).step(batch, 0)
    assert math.isfinite(rate)
    assert len(trained.losses) == len(list(network))
    for loss, module in zip(trained.losses, network, strict=True):
        assert loss.total.shape == (module.groups,)
        assert loss.total.isfinite().all()
    assert all(torch.isfinite(p).all() for p in network.parameters())


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(runs)
def test_any_configuration_trains_a_step_or_is_refused_in_one_line(values):
    try:
        train_a_step(build(**values))
    except ConfigError as error:
        event("refused: " + error.field)
        problem = str(error)
    else:
        event("trained")
        return
    assert "\n" not in problem
    assert "expected" in problem or "Did you mean" in problem


valid = st.builds(
    lambda method, model, depth, width, stop_gradient, diversity: RunConfig(
        method=method,
        model=model,
        depth=depth,
        width=(width,),
        objective=ObjectiveConfig(stop_gradient=stop_gradient, diversity_weight=diversity, head_width=8),
        train=TrainConfig(batch_size=4, precision="fp32", device="cpu"),
        data=DataConfig(train_limit=8, test_limit=4),
    ),
    method=st.just("gn-dgl"),
    model=st.sampled_from(["tiny-resnet", "tiny-vgg", "resnet8"]),
    depth=st.integers(1, 4),
    width=st.sampled_from([1, 2, 4, 8]),
    stop_gradient=st.booleans(),
    diversity=st.sampled_from([0.0, 0.5]),
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(valid)
def test_every_good_configuration_trains(config):
    train_a_step(dataclasses.replace(config))
