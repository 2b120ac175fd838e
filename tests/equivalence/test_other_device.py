"""An epoch's steps on another device than the CPU, with the meta device in its place.

Its tensors are not the CPU's and have no values: a step that mixes the two, that looks at a value or that brings more
than draws from the host fails here, as it would fail on a GPU or make it wait.
"""

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import small
from locallearn.bench.epoch import random_images
from locallearn.config import AugmentConfig, MaskingConfig, ModificationConfig, ObjectiveConfig, OptimizerConfig
from locallearn.core.image_shape import ImageShape
from locallearn.core.methods import methods
from locallearn.training.configured import Training
from locallearn.training.observer import Quiet
from locallearn.training.record import RunFolder
from locallearn.training.setup import resolve

IMAGES = random_images(ImageShape(3, 16, 10), 40)
COLOURS = AugmentConfig(resized_crop=(0.2, 1.0), jitter=0.8, grey=0.2)

CASES = {
    "e2e": ("e2e", 1, (1,), {}),
    "single-thread": ("single-thread", 1, (2,), {}),
    "dgl": ("dgl", 2, (1,), {}),
    "gn-dgl": ("gn-dgl", 2, (4,), {"optimizer": OptimizerConfig(clip_norm=1.0)}),
    "gn-dgl pooled": ("gn-dgl", 2, (2,), {"objective": ObjectiveConfig(pool_others=2)}),
    "gn-dgl mlp-sr": ("gn-dgl", 2, (2,), {"objective": ObjectiveConfig(head="mlp-sr"), "dropout": 0.1}),
    "dgl vit": ("dgl", 2, (1,), {"model": "vit-nano", "optimizer": OptimizerConfig(name="adam")}),
    "infopro": ("infopro", 2, (1,), {}),
    "infopro cross-entropy": (
        "infopro",
        2,
        (1,),
        {"objective": ObjectiveConfig(infopro_loss="cross-entropy", infopro_weights=(5, 1, 1, 1))},
    ),
    "predsim": ("predsim", 2, (2,), {}),
    "simclr": ("simclr", 1, (1,), {"augment": COLOURS}),
    "dgssl": ("dgssl", 2, (2,), {"augment": COLOURS}),
    "dgssl barlow-twins": ("dgssl", 2, (2,), {"objective": ObjectiveConfig(loss="barlow-twins")}),
    "dgssl vicreg": ("dgssl", 2, (2,), {"objective": ObjectiveConfig(loss="vicreg")}),
    "blockwise-ssl": ("blockwise-ssl", 2, (1,), {"augment": COLOURS}),
    "greedy-infomax": ("greedy-infomax", 2, (1,), {}),
    "dgssl-llm": (
        "dgssl-llm",
        2,
        (1,),
        {"augment": COLOURS, "objective": ObjectiveConfig(modification=ModificationConfig(scorer="self"))},
    ),
    "dgssl-llm augmentation": (
        "dgssl-llm",
        2,
        (1,),
        {"augment": COLOURS, "objective": ObjectiveConfig(modification=ModificationConfig(scorer="augmentation"))},
    ),
    "dgssl-llm ema": (
        "dgssl-llm",
        2,
        (1,),
        {"augment": COLOURS, "objective": ObjectiveConfig(modification=ModificationConfig(scorer="ema"))},
    ),
    "mae": (
        "mae",
        2,
        (1,),
        {"model": "vit-nano", "objective": ObjectiveConfig(masking=MaskingConfig(decoder_width=16))},
    ),
}


class OnDevice(TorchDispatchMode):
    """Refuses operators that mix devices, and counts the bytes that are copied from the CPU.

    Attributes:
        copied: these bytes.
    """

    def __init__(self):
        super().__init__()
        self.copied = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("_to_copy", "copy_"):
            source, target = (args[0], out) if name == "_to_copy" else (args[1], args[0])
            self.copied += source.nbytes if (source.device.type, target.device.type) == ("cpu", "meta") else 0
            return out
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.dim()]
        assert len({t.device for t in tensors}) <= 1, f"{func} mixes the device with the CPU"
        return out


def steps_of_an_epoch(case, folder, monkeypatch, change=lambda training: None):
    method, depth, width, changes = CASES[case]
    autocast = torch.autocast  # has no precision of its own for the meta device
    monkeypatch.setattr(torch, "autocast", lambda _, **settings: autocast("cpu", **settings))
    config = resolve(small.config(method, depth, width, **changes), IMAGES)
    train = dataclasses.replace(config.train, device="meta", batch_size=16)
    training = Training(dataclasses.replace(config, train=train), IMAGES, RunFolder(folder), Quiet())
    change(training)
    with OnDevice() as device, training.runtime:
        for batch in training.train_store.epoch(0, 16):
            training._step(batch)
    assert training.step == 3
    assert device.copied < IMAGES.train.images.nbytes, "the images come from the host"


@pytest.mark.parametrize("case", CASES)
def test_steps_stay_on_the_device(case, tmp_path, monkeypatch):
    steps_of_an_epoch(case, tmp_path, monkeypatch)


def test_every_method_is_there():
    assert {method for method, *_ in CASES.values()} == set(methods)


def test_images_that_stay_on_the_host_are_caught(tmp_path, monkeypatch):
    def leave(training):
        training.train_store._images = IMAGES.train.images

    with pytest.raises(AssertionError, match="mixes the device with the CPU"):
        steps_of_an_epoch("gn-dgl", tmp_path, monkeypatch, leave)


def test_images_that_are_brought_batch_by_batch_are_caught(tmp_path, monkeypatch):
    def bring(training):
        normalise = training.train_store.made
        monkeypatch.setattr(
            training.train_store,
            "made",
            lambda images, *rest: normalise(torch.rand(images.shape).to("meta"), *rest),
        )

    with pytest.raises(AssertionError, match="come from the host"):
        steps_of_an_epoch("gn-dgl", tmp_path, monkeypatch, bring)


def test_metrics_that_are_kept_on_the_host_are_caught(tmp_path, monkeypatch):
    def look(training):
        add = training.sums.count
        monkeypatch.setattr(
            training.sums, "count", lambda name, value: add(name, torch.zeros(value.shape).copy_(value))
        )

    with pytest.raises(NotImplementedError, match="no data"):
        steps_of_an_epoch("gn-dgl", tmp_path, monkeypatch, look)
