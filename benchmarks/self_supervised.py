#!/usr/bin/env python3
"""What augmentation and the loss add to a self-supervised step, and what K modules keep for the backward pass.

Measured on random images of CIFAR-10's shape: the network's step on two views of ``--images`` images, the
augmentation of Fig. A.2 that makes these views, and NT-Xent of ``--views`` views, forward and backward, with and
without a choice of pairs. The loss is compared with a step on as many views, taken as proportional to the images.

    python benchmarks/self_supervised.py --model resnet18 --images 32
"""

import argparse
import dataclasses
import json
from functools import partial

import torch

from locallearn.bench.timing import interleaved
from locallearn.config import ModificationConfig
from locallearn.core.assembly import build_network
from locallearn.core.local_step import LocalStep
from locallearn.costs.nodes import CIFAR10, cost
from locallearn.data.datasets import Dataset, ImageSet
from locallearn.data.store import ImageStore
from locallearn.losses.contrastive import nt_xent
from locallearn.losses.two_views import ModifiedNTXent
from locallearn.recipes.named import recipe
from locallearn.training.optim import build_optimizer


def store_of(config, images):
    """Random images, augmented as the recipe says."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=draw)
    found = ImageSet(pixels, torch.zeros(images, dtype=torch.int64))
    half = (0.5,) * 3
    names = tuple("0123456789")
    dataset = Dataset("random", found, found, names, half, half, config.augment, "random pixels")
    return ImageStore(found, dataset, config.augment, "cpu", 0, views=2)


def loss_step(loss, views):
    """Forward and backward pass of a loss of projections."""
    projections = torch.randn(1, views, 128, requires_grad=True)

    def step():
        projections.grad = None
        loss(projections).sum().backward()

    return step


def choosing_step(views):
    """The same with a choice of pairs, by the projections themselves, as module 1 of 4."""
    objective = ModifiedNTXent(torch.nn.Identity(), 0.5, ModificationConfig(scorer="self"), (1, 4))
    return loss_step(lambda projections: objective(projections, None).total, views)


def measure(options):
    """Median seconds of each thing, and shares of a step."""
    config = dataclasses.replace(recipe(f"{options.model}-simclr"), seed=0)
    network = build_network(config, CIFAR10).to(memory_format=torch.channels_last)
    (module,) = network
    step = LocalStep(module, build_optimizer(config.optimizer, module.parameters()), options.precision)
    store = store_of(config, options.images)
    batch = next(store.epoch(0, options.images))
    images = batch.images

    def augment():
        return next(store.epoch(0, options.images)).images

    contenders = {
        "step": lambda: step(images, batch),
        "augmentation": augment,
        "nt-xent": loss_step(partial(nt_xent, temperature=0.5), options.views),
        "nt-xent with choice": choosing_step(options.views),
    }
    seconds = {
        name: timing.median for name, timing in interleaved(contenders, options.repeats, torch.device("cpu")).items()
    }
    scaled = seconds["step"] * options.views / (2 * options.images)
    shares = {
        "augmentation": seconds["augmentation"] / (seconds["step"] + seconds["augmentation"]),
        "nt-xent": seconds["nt-xent"] / scaled,
        "nt-xent with choice": seconds["nt-xent with choice"] / scaled,
    }
    return {"seconds": seconds, "shares of a step": shares}


def kept():
    """Bytes of a ResNet-50 for the backward pass of 512 views in fp32: end to end, and the largest of 8 modules."""
    found = {}
    for method, depth in (("simclr", 1), ("dgssl", 8)):
        config = dataclasses.replace(recipe(f"resnet50-{method}"), depth=depth)
        modules = cost(config, CIFAR10, precision="fp32").modules
        found[f"K={depth}"] = max(module.activation_bytes for module in modules)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18", help="for example resnet18x0.25")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--images", type=int, default=32, help="images of a step, of two views each")
    parser.add_argument("--views", type=int, default=1024, help="views that the loss compares")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(json.dumps({**vars(options), **measure(options), "activation bytes of resnet50": kept()}, indent=1))


if __name__ == "__main__":
    main()
