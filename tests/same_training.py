"""Runs that every runtime which trains what the inline one trains is held to, and how two of them are compared."""

import dataclasses

import torch

import small
from locallearn.config import (
    AugmentConfig,
    MaskingConfig,
    ModificationConfig,
    ObjectiveConfig,
    OptimizerConfig,
    ScheduleConfig,
)

VIEWS = AugmentConfig(resized_crop=(0.3, 1.0), flip=0.0)
MAN = ObjectiveConfig(head="momentum", head_options={"momentum": 0.5})
GENTLE = OptimizerConfig(learning_rate=0.01)
RISING = ScheduleConfig(unit="step", warmup_epochs=1)  # another rate at every step


def chosen(scorer):
    return ObjectiveConfig(modification=ModificationConfig(scorer=scorer, positive_ratio=0.8, negative_ratio=0.8))


CASES = {
    "e2e": small.config("e2e", 1, (1,)),
    "dgl": small.config("dgl", 4, (1,), schedule=RISING),
    "gn-dgl": small.config("gn-dgl", 3, (2,), schedule=RISING, optimizer=GENTLE),
    "predsim": small.config("predsim", 2, (2,), optimizer=GENTLE),
    "infopro": small.config("infopro", 2, (1,), seed=1, optimizer=GENTLE),
    "momentum": small.config("dgl", 4, (1,), schedule=RISING, objective=MAN),
    "momentum G=2": small.config("gn-dgl", 3, (2,), optimizer=GENTLE, objective=MAN),
    "context image": small.config("dgl", 4, (1,), schedule=RISING, context="image"),
    "context before": small.config("predsim", 3, (1,), optimizer=GENTLE, context="before"),
    "adam": small.config("dgl", 3, (1,), optimizer=OptimizerConfig(name="adam", learning_rate=1e-3, clip_norm=1.0)),
    "bf16": small.config("gn-dgl", 3, (2,), train=dataclasses.replace(small.TRAIN, precision="bf16")),
    "dgssl": small.config("dgssl", 3, (1,), augment=VIEWS, optimizer=GENTLE),
    "llm": small.config("dgssl-llm", 2, (1,), augment=VIEWS, optimizer=GENTLE, objective=chosen("self")),
    "ema": small.config("dgssl-llm", 2, (1,), augment=VIEWS, optimizer=GENTLE, objective=chosen("ema")),
    "mae": small.config(
        "mae", 2, (1,), model="vit-nano", objective=ObjectiveConfig(masking=MaskingConfig(decoder_width=16))
    ),
}


def differences(a, b):
    """Tensors of two checkpoints that are not equal, bit for bit."""
    assert a.tensors.keys() == b.tensors.keys()
    return [key for key in a.tensors if not torch.equal(a.tensors[key], b.tensors[key])]
