"""Scorers: how alike two views are, which layerwise loss modification chooses pairs by.

A scorer gives a batch one matrix of similarities, for all modules; the training loop owns it. The module's own
projections (``self``) need none.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from locallearn.config import RunConfig, digest
from locallearn.core.local_step import autocast
from locallearn.core.network import LocalNetwork
from locallearn.data.datasets import Dataset
from locallearn.data.store import Batch
from locallearn.errors import ConfigError
from locallearn.losses.contrastive import cosine_similarities
from locallearn.losses.two_views import ModifiedNTXent
from locallearn.training.finished import OpenedRun, open_run

_PREFIX = "scorer/"


class Scorer:
    """Base of scorers; on its own it leaves batches without scores.

    Attributes:
        identity: which trained network it is; a resumed run must find the same.
        follows: whether ``update`` looks at the network that trains.
    """

    identity: str | None = None
    follows: bool = False

    def scored(self, batch: Batch) -> Batch:
        """The batch with similarities [2N, 2N]."""
        return batch

    def update(self) -> None:
        """Follow the network after a step."""

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must hold."""
        return {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what ``tensors`` gave."""


class Pretrained(Scorer):
    """Cosine similarity of the features of a trained network: those of its last module, averaged over positions.

    Args:
        run: whose network it is. It sees the images as its own training normalised them.
        precision: ``"fp32"`` or ``"bf16"``.
    """

    def __init__(self, run: OpenedRun, precision: str) -> None:
        self.network, self.precision = run.network, precision
        self.identity = f"{digest(run.config)}, seed {run.config.seed}, step {run.step}"
        mean, std = (
            torch.tensor(v, device=run.device).view(1, -1, 1, 1) for v in (run.dataset.mean, run.dataset.std)
        )
        self._mean, self._std = mean, std

    def scored(self, batch: Batch) -> Batch:
        """The batch with similarities; costs one forward pass of the scorer's network."""
        return _by_features(self.network, (batch.pixels - self._mean).div_(self._std), batch, self.precision)


class MovingAverage(Scorer):
    """The same by an exponential moving average of the network that is trained, batch norm's statistics included.

    Args:
        network: the network that is trained.
        decay: share of its own weights that the average keeps at every step.
        precision: ``"fp32"`` or ``"bf16"``.
    """

    follows = True

    def __init__(self, network: LocalNetwork, decay: float, precision: str) -> None:
        self.network, self.precision = network, precision
        self.average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True).eval()

    def scored(self, batch: Batch) -> Batch:
        """The batch with similarities; costs one forward pass."""
        average = self.average.module
        assert isinstance(average, LocalNetwork)
        return _by_features(average, batch.images, batch, self.precision)

    def update(self) -> None:
        """Take one step towards the network."""
        self.average.update_parameters(self.network)

    def tensors(self) -> dict[str, Tensor]:
        """The average."""
        return {_PREFIX + name: value for name, value in self.average.state_dict().items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the average back."""
        own = {name.removeprefix(_PREFIX): value for name, value in tensors.items() if name.startswith(_PREFIX)}
        self.average.load_state_dict(own)


class Severity(Scorer):
    """How mildly two views were augmented, without any network.

    A pair's similarity is 1 less the distance of its colours, in [0, 1]: the root mean square difference of mean and
    standard deviation of every channel. For a positive pair that is multiplied by how much its two crops overlap, as
    intersection over union. Crops of different images do not overlap in any sense, so of negative pairs only colours
    tell.
    """

    def scored(self, batch: Batch) -> Batch:
        """The batch with similarities; costs next to nothing."""
        std_BC, mean_BC = torch.std_mean(batch.pixels.flatten(2), 2, correction=0)
        colours_BF = torch.cat([mean_BC, std_BC], dim=1)
        distance_BB = (colours_BF[:, None] - colours_BF).square().mean(-1).sqrt()
        scores = 1 - distance_BB
        if batch.boxes is not None:
            half = len(scores) // 2
            overlap_N = crop_overlap(*batch.boxes.float().chunk(2))
            for offset in (-half, half):
                scores.diagonal(offset).mul_(overlap_N)
        return batch.with_scores(scores)


def crop_overlap(first_N4: Tensor, second_N4: Tensor) -> Tensor:
    """Intersection over union of boxes (top, left, height, width), [N]."""
    start_N2 = torch.maximum(first_N4[:, :2], second_N4[:, :2])
    end_N2 = torch.minimum(first_N4[:, :2] + first_N4[:, 2:], second_N4[:, :2] + second_N4[:, 2:])
    shared_N = (end_N2 - start_N2).clamp(min=0).prod(1)
    return shared_N / (first_N4[:, 2:].prod(1) + second_N4[:, 2:].prod(1) - shared_N)


@torch.no_grad()
def _by_features(network: LocalNetwork, images: Tensor, batch: Batch, precision: str) -> Batch:
    with autocast(images.device, precision):
        features_BC = network.features(images)
    return batch.with_scores(cosine_similarities(features_BC[None])[0])


def chooses_pairs(network: LocalNetwork) -> bool:
    """Whether any of these modules chooses pairs, which the last one of K never does."""
    chosen = [module.objective for module in network if isinstance(module.objective, ModifiedNTXent)]
    return any(objective.chooses for objective in chosen)


def build_scorer(config: RunConfig, network: LocalNetwork, dataset: Dataset) -> Scorer:
    """The scorer that a resolved configuration asks for; one that does nothing where no module chooses pairs.

    Raises:
        ConfigError: a pretrained scorer is asked for and not given, or is for other images.
        UsageError: the scorer's folder is not a run, or has no checkpoint.
    """
    settings = config.objective.modification
    if not chooses_pairs(network) or settings.scorer == "self":
        return Scorer()
    if settings.scorer == "augmentation":
        return Severity()
    if settings.scorer == "ema":
        return MovingAverage(network, settings.ema_decay, str(config.train.precision))
    return Pretrained(_open_scorer(config, dataset), str(config.train.precision))


def _open_scorer(config: RunConfig, dataset: Dataset) -> OpenedRun:
    folder = config.objective.modification.scorer_run
    if folder is None:
        expected = "the folder of a finished run of method simclr, or another objective.modification.scorer"
        raise ConfigError("objective.modification.scorer_run", folder, expected)
    run = open_run(folder, device=config.train.device, root=config.data.root)
    own, theirs = ((d.channels, d.image_size) for d in (dataset, run.dataset))
    if own != theirs:
        expected = f"a run on images of {own[0]} channels and {own[1]} pixels"
        raise ConfigError("objective.modification.scorer_run", folder, expected)
    return run
