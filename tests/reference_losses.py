"""Losses and auxiliary networks written plainly from the papers: image by image, pair by pair, group by group.

They share no code with the package.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


def plain_supervised_contrastive(z, labels, temperature):
    """L_out of Khosla et al. (2020) with one view an image, as three loops."""
    z = [row / row.square().sum().sqrt() for row in z]
    values = []
    for i in range(len(z)):
        positives = [p for p in range(len(z)) if p != i and labels[p] == labels[i]]
        if not positives:
            continue
        everyone = sum((z[i] @ z[a] / temperature).exp() for a in range(len(z)) if a != i)
        total = sum(((z[i] @ z[p] / temperature).exp() / everyone).log() for p in positives)
        values.append(-total / len(positives))
    return sum(values) / len(values)


def plain_similarity(x):
    """Cosine of every pair of rows, each less its own mean."""
    rows = [row - row.sum() / len(row) for row in x]
    return torch.stack(
        [torch.stack([a @ b / (a.square().sum().sqrt() * b.square().sum().sqrt()) for b in rows]) for a in rows]
    )


def plain_similarity_loss(x, labels, classes):
    """Mean squared difference from the similarities of the one-hot targets, entry by entry."""
    targets = torch.zeros(len(labels), classes, dtype=x.dtype)
    for i, label in enumerate(labels):
        targets[i, label] = 1
    a, b = plain_similarity(x), plain_similarity(targets)
    n = len(labels)
    return sum((a[i, j] - b[i, j]) ** 2 for i in range(n) for j in range(n)) / n**2


def plain_bce(scores, pixels):
    """Binary cross entropy of sigmoid(scores), element by element."""
    total = 0.0
    for s, x in zip(scores.flatten().tolist(), pixels.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-s))
        total -= x * math.log(p) + (1 - x) * math.log(1 - p)
    return total / scores.numel()


class PlainPredSim(nn.Module):
    """Predsim's two networks of one group, on what that group sees."""

    def __init__(self, seen, pooled, classes, maps=True):
        super().__init__()
        self.pooled = pooled
        self.layer = nn.Conv2d(seen, seen, 3, padding=1, bias=False) if maps else nn.Linear(seen, seen, bias=False)
        self.linear = nn.Linear(seen * pooled[0] * pooled[1] if maps else seen, classes)

    def forward(self, x):
        compared = self.layer(x)
        if x.dim() == 4:
            n = compared.shape[2] * compared.shape[3]
            flat = compared.flatten(2)
            mean = flat.sum(2, keepdim=True) / n
            compared = ((flat - mean).square().sum(2) / (n - 1)).sqrt()
            x = F.avg_pool2d(x, (x.shape[2] // self.pooled[0], x.shape[3] // self.pooled[1]))
        return compared, self.linear(x.flatten(1))


class PlainMlpHead(nn.Module):
    """mlp-sr of one group, as in the public code of Belilovsky et al. (2020)."""

    def __init__(self, seen, side, classes, maps=True):
        super().__init__()
        self.reduced = math.ceil(side / 4)
        self.convs, self.linears = nn.Sequential(), nn.Sequential()
        for _ in range(3 if maps else 0):
            self.convs.extend([nn.Conv2d(seen, seen, 1, bias=False), nn.BatchNorm2d(seen), nn.ReLU()])
        units = 4 * seen if maps else seen
        for _ in range(3):
            self.linears.extend([nn.Linear(units, units), nn.BatchNorm1d(units), nn.ReLU()])
        self.linears.append(nn.Linear(units, classes))

    def forward(self, x):
        if x.dim() == 4:
            x = self.convs(F.adaptive_avg_pool2d(x, self.reduced))
            x = F.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.linears(x)


def copy_rows(plain, grouped, names, group, groups):
    """Copy group ``group``'s rows of a grouped module into a plain one; ``names`` maps plain prefixes to grouped."""
    source = grouped.state_dict()
    for name, value in {**dict(plain.named_parameters()), **dict(plain.named_buffers())}.items():
        rows = rows_of(source[grouped_name(name, names)], group, groups)
        with torch.no_grad():
            value.copy_(rows.view_as(value))


def grouped_name(name, names):
    """The name in the grouped module of the plain module's ``name``."""
    for plain, grouped in names.items():
        if name.startswith(plain):
            return grouped + name.removeprefix(plain)
    raise KeyError(name)


def rows_of(tensor, group, groups):
    """Group ``group``'s rows; counters of batches are common to all."""
    return tensor if tensor.dim() == 0 else tensor.chunk(groups)[group]


def seen_by(features, group, groups, stop_gradient):
    """What the head of a group sees: its own channels, with stop-gradient also the others', detached."""
    parts = features.chunk(groups, 1)
    if not stop_gradient:
        return parts[group]
    return torch.cat([part if i == group else part.detach() for i, part in enumerate(parts)], 1)
