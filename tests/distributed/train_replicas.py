"""Trains users' models with an ll.Trainer, alone or as replicas: ``train_replicas.py CASES OUTPUT EPOCHS [RUN]``.

``CASES`` are names with commas between; the environment's ``FAULT`` breaks something on purpose.
"""

import contextlib
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

import locallearn as ll
from locallearn.core.weighing import by_examples
from locallearn.nn.peers import Peers, computing_with
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


class NormAct(nn.BatchNorm2d):
    """A batch norm with its activation, as models have that others wrote; with a fault it trains on its own rows."""

    def forward(self, x):
        alone = "FAULT" in os.environ and torch.is_grad_enabled()
        with computing_with(Peers()) if alone else contextlib.nullcontext():
            training, mean, var = self.training, self.running_mean, self.running_var
            x = F.batch_norm(x, mean, var, self.weight, self.bias, training, self.momentum, self.eps)
        return F.silu(x, inplace=True)


class Normed(nn.Module):
    """Batch norms of every kind, one of them computed again in the backward pass, and attention with a mask of tokens
    by tokens, of which there are as many as examples in the first batch.
    """

    def __init__(self):
        super().__init__()
        self.one = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1, bias=False), NormAct(8))
        self.two = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8, affine=False))
        self.three = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), NormAct(8))
        self.average = nn.BatchNorm1d(8, momentum=None)
        self.unnoted = nn.BatchNorm1d(8, track_running_stats=False)
        self.attention = nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
        self.fc = nn.Linear(8, 5)

    def forward(self, x, mask):
        x = self.two(self.one(x))
        x = checkpoint(self.three, x, use_reentrant=False)
        x = F.adaptive_avg_pool2d(x, (2, 3)).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]
        return self.fc(self.unnoted(self.average(x.mean(1))))


def masked():
    (x, labels), mask = images(), torch.ones(6, 6).tril()
    return (x, mask.log()), labels


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
    "norms": (Normed, masked(), {}),
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
            stage.weighing = stage.weighing and by_examples


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


def train(name, epochs, run):
    make, batch, settings = CASES[name]
    torch.manual_seed(0)
    network = ll.split(make().train(), example=batch, depth=2, **settings)
    small = tree_map(lambda v: v if v.shape == (6, 6) else v[:3], batch)
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
