"""Options of ``locallearn plan``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from locallearn.cli.options import check_at_least, check_links
from locallearn.config import ImageSize, ObjectiveConfig
from locallearn.errors import ConfigError
from locallearn.plan.cuts import DEPTHS, WIDTHS

MEASURED = ("memory", "time")
"""What ``--cuts`` balances that multiply-accumulates do not tell."""

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@dataclass(frozen=True)
class PlanOptions:
    """Options of ``plan``."""

    memory: str
    """Memory of each device, with a unit: 512MiB, 2GiB, 8GB."""
    devices: int = 1
    """How many devices there are."""
    model: str = "resnet32"
    """Backbone, for example resnet32, resnet32x2, vgg6a; or package.module:function, a function of your own that
    gives a pair: your model, and a batch of the size that you mean to train on; or timm:NAME or hf:CONFIG."""
    method: str = "gn-dgl"
    """How the network is trained, for example dgl or gn-dgl."""
    depths: tuple[int, ...] = DEPTHS
    """K to try."""
    widths: tuple[int, ...] = WIDTHS
    """G to try, the same in all modules; 1 for a model of your own."""
    heads: tuple[str, ...] = ("1c2f",)
    """Auxiliary heads to try; smaller heads are faster and less accurate."""
    cuts: tuple[str, ...] = ("auto",)
    """Where modules end: auto (the thesis's table, else balanced), balanced (multiply-accumulates of the blocks),
    memory (of blocks and heads, counted) or time (of blocks and heads, measured on this machine). With a model of
    your own auto is what ll.split chooses."""
    objective: Annotated[ObjectiveConfig, tyro.conf.arg(name="")] = field(default_factory=ObjectiveConfig)
    optimizer: Literal["sgd", "adam"] = "sgd"
    """SGD with momentum, or Adam, which remembers twice as much."""
    image_size: ImageSize = 32
    """Side of an image, or height and width [pixels]."""
    channels: int = 3
    """Channels of an image."""
    classes: int = 10
    """Number of classes."""
    batch_size: int = 128
    """Images a step [images]."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """fp32, or bf16 autocast."""
    device_flops: float | None = None
    """Operations a second that one device reaches (a multiply-accumulate is two); without it, times are relative."""
    bandwidth: float | None = None
    """What one device sends, with --device-flops [bytes/s]; no limit by default."""
    latency: float | None = None
    """From the last byte sent to its arrival, with --device-flops [s]; 0 by default."""
    batches: int = 8
    """Batches of the predicted run."""
    in_flight: int = 2
    """Batches that a module may have begun and the next one not yet taken forward [batches]."""
    show: int = 5
    """How many plans to show."""
    all: bool = False
    """Also show every plan and every usual way, and what is not proposed and why."""
    measure: bool = False
    """Also run the proposed step on this machine, and show prediction and measurement side by side."""
    repeats: int = 10
    """Measurements of each module, with --measure; medians are shown."""
    device: str | None = None
    """Where to measure, with --measure or --cuts time, cpu or cuda[:N]; by default the GPU where there is one."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self) -> None:
        check_at_least(self, devices=1, image_size=4, channels=1, classes=2, batch_size=2)
        check_at_least(self, show=1, repeats=1, batches=1, in_flight=1)
        check_links(self.device_flops, bandwidth=self.bandwidth, latency=self.latency)
        if set(self.cuts) - {"auto", "balanced", *MEASURED} or len(self.cuts) != 1:
            raise ConfigError("--cuts", self.cuts, "auto, balanced, memory or time")
        parse_bytes("--memory", self.memory)


def parse_bytes(name: str, text: str) -> int:
    """``2GiB`` as a number of bytes.

    Raises:
        ConfigError: it is not a number above 0 with a known unit.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([KMG]i?B)?", text.strip(), re.IGNORECASE)
    size = float(match[1]) * _UNITS[(match[2] or "").upper()] if match else 0.0
    if not 1 <= size < 2**63:
        raise ConfigError(name, text, "a size such as 512MiB, 2GiB or 8GB")
    return int(size)
