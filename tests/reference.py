"""The K x G network written plainly: a loop over groups, each with modules of its own from torch.nn.

It is what the grouped network must equal, forward and backward, and it shares no code with it.
"""

import torch
import torch.nn.functional as F
from torch import nn


def conv3(inputs, outputs, stride=1):
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


class PlainConvBlock(nn.Module):
    def __init__(self, seen, outputs, stride=1, pool=False):
        super().__init__()
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.conv, self.bn = conv3(seen, outputs, stride), nn.BatchNorm2d(outputs)

    def forward(self, seen, own):
        return F.relu(self.bn(self.conv(self.pool(seen))))


class PlainBasicBlock(nn.Module):
    """One group's path through a basic block: ``seen`` by its first convolutions, ``own`` are its own channels."""

    def __init__(self, seen, own, outputs, stride=1):
        super().__init__()
        self.conv1, self.bn1 = conv3(seen, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv3(outputs, outputs), nn.BatchNorm2d(outputs)
        self.project = stride != 1 or own != outputs
        self.shortcut = nn.Identity()
        if self.project:
            self.shortcut = nn.Sequential(nn.Conv2d(seen, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, seen, own):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(seen)))))
        return F.relu(y + self.shortcut(seen if self.project else own))


class PlainHead(nn.Module):
    def __init__(self, n_convs, n_linears, channels, hidden, classes):
        super().__init__()
        self.convs = nn.Sequential()
        for i in range(n_convs):
            width = 2 * channels
            self.convs.append(conv3(channels if i == 0 else width, width, 2 if i == 0 else 1))
            self.convs.append(nn.BatchNorm2d(width))
            self.convs.append(nn.ReLU())
        size = 2 * channels if n_convs else channels
        self.linears = nn.Sequential()
        for i in range(n_linears):
            last = i == n_linears - 1
            self.linears.append(nn.Linear(size, classes if last else hidden))
            if not last:
                self.linears.append(nn.ReLU())
            size = hidden

    def forward(self, x):
        return self.linears(self.convs(x).mean((2, 3)))


class PlainNode(nn.Module):
    """Group g of a module: its path through the blocks, and its head."""

    def __init__(self, blocks, head):
        super().__init__()
        self.blocks, self.head = nn.ModuleDict(blocks), head

    def features(self, all_channels, group, groups):
        own = all_channels.chunk(groups, 1)[group] if all_channels.shape[1] % groups == 0 else all_channels
        seen = all_channels
        for block in self.blocks.values():
            seen = own = block(seen, own)
        return own


def plain_resnet_node(spec, span, input_channels, groups, head):
    """``spec`` lists (name, channels, stride) with the stem first."""
    blocks = {}
    for i in span:
        name, outputs, stride = spec[i]
        before = input_channels if i == 0 else spec[i - 1][1]
        seen = before if i == span.start else before // groups
        if i == 0:
            blocks[name] = PlainConvBlock(seen, outputs // groups)
        else:
            blocks[name] = PlainBasicBlock(seen, before // groups, outputs // groups, stride)
    return PlainNode(blocks, head)


def copy_group(node, module, group):
    """Copy group ``group``'s rows of a grouped module's parameters and buffers into a plain node."""
    source = module.state_dict()
    state = {}
    for name, value in node.state_dict().items():
        kind, rest = name.split(".", 1)
        full = source[f"blocks.{rest}" if kind == "blocks" else f"objective.head.{rest}"]
        state[name] = full if full.dim() == 0 else full.chunk(module.groups)[group]
        assert state[name].shape == value.shape, name
    node.load_state_dict(state)


def pooled(x, side):
    """Every value becomes the mean of its square of ``side`` pixels; squares end where the map does."""
    out = torch.empty_like(x)
    for top in range(0, x.shape[2], side):
        for left in range(0, x.shape[3], side):
            square = x[:, :, top : top + side, left : left + side]
            out[:, :, top : top + side, left : left + side] = square.mean((2, 3), keepdim=True)
    return out


def plain_step(nodes, x, labels, *, stop_gradient, diversity_weight=0.0, temperature=3.0, pool_others=1):
    """Features, per-node losses and gradients of one module, as a loop over its groups (Algorithms 1 and 2)."""
    groups = len(nodes)
    features = [node.features(x, g, groups) for g, node in enumerate(nodes)]
    logits = []
    for g, node in enumerate(nodes):
        if stop_gradient:
            seen = torch.cat([f if i == g else pooled(f.detach(), pool_others) for i, f in enumerate(features)], 1)
        else:
            seen = features[g]
        logits.append(node.head(seen))
    losses = []
    for g in range(groups):
        loss = F.cross_entropy(logits[g], labels)
        if diversity_weight and groups > 1:
            loss = loss + diversity_weight * plain_diversity(logits, labels, temperature)[g]
        losses.append(loss)
    for g, node in enumerate(nodes):
        gradients = torch.autograd.grad(losses[g], list(node.parameters()), retain_graph=True)
        for parameter, gradient in zip(node.parameters(), gradients, strict=True):
            parameter.grad = gradient
    return torch.cat(features, 1).detach(), logits, losses


def plain_diversity(logits, labels, temperature):
    """Eq. 1 image by image and pair by pair."""
    groups, batch = len(logits), len(labels)
    shares = []
    for a in range(groups):
        total = 0.0
        for b in range(groups):
            if a == b:
                continue
            for i in range(batch):
                total = total + F.cosine_similarity(
                    _rest(logits[a][i], labels[i], temperature),
                    _rest(logits[b][i], labels[i], temperature).detach(),
                    dim=0,
                )
        shares.append(total / batch / (groups * (groups - 1)))
    return shares


def _rest(logits_C, label, temperature):
    """p-hat of Sec. 3.2.4: the softmax with its target entry removed, divided by its L1 norm."""
    mask = torch.ones_like(logits_C)
    mask[label] = 0.0
    p = torch.softmax(logits_C / temperature, 0) * mask
    return p / p.abs().sum()
