"""Trains users' models with an ll.Trainer, alone or as replicas: ``train_replicas.py CASES OUTPUT EPOCHS [RUN]``.

``CASES`` are names with commas between; the environment's ``FAULT`` breaks something on purpose.
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

import locallearn as ll
from locallearn.core.weighing import by_examples
from locallearn.training.observer import Quiet

sys.path.insert(0, str(Path(__file__).parents[1]))
from user_models import ResNet, Transformer, UNet, images, sequences


class Tagger(nn.Module):
    """A class for every token; its own loss is the mean over labels that are not -100."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Dropout(dropout)) for _ in range(3))
        )
        self.score = nn.Linear(8, 5)

    def forward(self, tokens, attention_mask=None, labels=None):
        logits = self.score(self.layers(self.embed(tokens)))
        loss = None if labels is None else F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits}


def tagged(n=6):
    draw = torch.Generator().manual_seed(1)
    tokens, labels = torch.randint(11, (n, 7), generator=draw), torch.randint(5, (n, 7), generator=draw)
    mask = (torch.arange(7) < torch.tensor([7, 6, 5, 4, 2, 7])[:n, None]).long()
    return {"tokens": tokens, "attention_mask": mask, "labels": labels.where(labels > 0, -100)}


def lengths(scores, labels):
    """A loss that is no mean over examples."""
    return F.cross_entropy(scores, labels) * len(labels)


CASES = {
    "transformer": (Transformer, sequences(), {}),
    "resnet": (ResNet, images(), {}),
    "unet": (UNet, images(), {"head": "0c1f"}),
    "tagger": (Tagger, tagged(), {}),
    "huber": (lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)),
              (torch.randn(6, 4, generator=torch.Generator().manual_seed(2)), torch.arange(6.0)[:, None]),
              {"objective": F.huber_loss}),
    "dropout": (lambda: Tagger(0.3), tagged(), {}),
    "sums": (lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 5)),
             (torch.randn(6, 4), torch.arange(6) % 5),
             {"objective": lengths}),
}  # fmt: skip


class Breaks(Quiet):
    """Weighs the losses of the leader's stages by examples."""

    def __init__(self, network):
        self.network = network

    def on_start(self, *_):
        for stage in self.network:
            stage.weighing = by_examples


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def train(name, epochs, run):
    make, batch, settings = CASES[name]
    torch.manual_seed(0)
    network = ll.split(make().train(), example=batch, depth=2, **settings)
    small = {k: v[:3] for k, v in batch.items()} if isinstance(batch, dict) else tuple(v[:3] for v in batch)
    several = "WORLD_SIZE" in os.environ
    trainer = ll.Trainer(
        network,
        optimizer=sgd,
        runtime="distributed" if several else "inline",
        replicas=2 if several else 1,
        run=run and f"{run}-{name}",
        observer=Breaks(network) if "FAULT" in os.environ else None,
    )
    summary = trainer.fit([batch, batch, small], epochs=epochs, validation=[batch])
    return network.state_dict(), [node["loss"] for node in summary.get("nodes", [])]


if __name__ == "__main__":
    torch.set_num_threads(1)
    cases, output, epochs, *run = sys.argv[1:]
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    found = {name: train(name, int(epochs), run[0] if run else None) for name in cases.split(",")}
    if os.environ.get("RANK", "0") == "0":
        torch.save(found, output)
    if dist.is_initialized():
        dist.destroy_process_group()
