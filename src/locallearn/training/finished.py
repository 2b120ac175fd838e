"""A run opened for use: its network with the weights of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from locallearn.arguments import checked
from locallearn.config import RunConfig
from locallearn.core.assembly import build_network
from locallearn.core.local_step import autocast
from locallearn.core.network import LocalNetwork
from locallearn.data.datasets import Dataset, ImageSet, ImagesOnDisk, load
from locallearn.data.folder import read_images
from locallearn.data.store import Store
from locallearn.errors import CheckpointError, ConfigError, UsageError
from locallearn.losses.functional import layerwise_ensemble
from locallearn.training.checkpoint import BEST, Checkpoint, CheckpointFolder, load_network
from locallearn.training.checkpoint import load as load_checkpoint
from locallearn.training.evaluate import Evaluation, classifies, evaluate_run
from locallearn.training.record import RunFolder
from locallearn.training.setup import image_shape, resolve, store_of, with_changes


class OpenedRun:
    """A trained network and what it takes to use it.

    Args:
        config: the run's configuration.
        dataset: its data.
        network: with trained weights, in eval mode.
        step: the step that the weights are of.
    """

    def __init__(self, config: RunConfig, dataset: Dataset, network: LocalNetwork, step: int) -> None:
        assert config.train.device is not None
        assert config.train.precision is not None
        self.config, self.dataset, self.network, self.step = config, dataset, network, step
        self.device = torch.device(config.train.device)
        self.precision = config.train.precision

    def evaluate(self) -> Evaluation:
        """Evaluate on the test images."""
        return evaluate_run(self.network, self.config, self.store(self.dataset.train), self.store(self.dataset.test))

    @torch.no_grad()
    def predict(self, folder: str | Path) -> list[dict[str, Any]]:
        """Classify the images of a folder.

        Returns:
            A dictionary an image: its name, and class and probability by the last layer and by the ensemble.

        Raises:
            UsageError: the network has no classifier.
        """
        if not classifies(self.network, next(self.store(self.dataset.test).ordered(1)).images, self.precision):
            raise UsageError(f"method {self.config.method} trains no classifier; see locallearn embed and probe")
        names, images = read_images(Path(folder), self.dataset.image_size, self.dataset.channels)
        store = self.store(ImageSet(images, torch.zeros(len(images), dtype=torch.int64)))
        rows: list[dict[str, Any]] = []
        for batch in store.ordered(self.config.train.evaluate_batch_size):
            with autocast(self.device, self.precision):
                logits = self.network.all_logits(batch.images)
            last = self._classes(logits[-1][0].float().softmax(-1))
            ensemble = self._classes(layerwise_ensemble(logits))
            for (label, p), (ensemble_label, ensemble_p) in zip(last, ensemble, strict=True):
                rows.append(
                    {
                        "image": names[len(rows)],
                        "last_layer": label,
                        "last_layer_probability": round(p, 6),
                        "ensemble": ensemble_label,
                        "ensemble_probability": round(ensemble_p, 6),
                    }
                )
        return rows

    def store(self, images: ImageSet | ImagesOnDisk) -> Store:
        """The images on the run's device, normalised and unchanged."""
        return store_of(self.config, self.dataset, images, self.device)

    def _classes(self, probabilities_BC: Tensor) -> list[tuple[str, float]]:
        best, index = probabilities_BC.max(-1)
        return [(self.dataset.classes[i], p) for i, p in zip(index.tolist(), best.tolist(), strict=True)]


@checked
def open_run(
    run: str | Path, checkpoint: str = "last", device: str | None = None, root: str | None = None
) -> OpenedRun:
    """Open a run, finished or not, at a checkpoint.

    Args:
        run: its folder.
        checkpoint: ``"last"`` (the newest that is whole), ``"best"``, or a step that is kept, such as ``"7800"``.
        device: where to put the network.
        root: folder that holds the data.

    Raises:
        UsageError: the folder is not a run, or its data are not there.
        CheckpointError: it has no such checkpoint, or only damaged ones.
    """
    folder = RunFolder(Path(run))
    config = with_changes(folder.built_config(), device=device, root=root)
    path, found = _checkpoint(folder, checkpoint)
    dataset = load(config.data)
    config = resolve(config, dataset)
    network = build_network(config, image_shape(dataset))
    load_network(network, found.tensors, path)
    network.to(config.train.device).eval()
    network.lay_out(bool(config.train.channels_last))
    return OpenedRun(config, dataset, network, found.progress["step"])


Network = TypeVar("Network", bound=LocalNetwork)


@checked
@torch.no_grad()
def load_run(network: Network, run: str | Path, checkpoint: str = "last") -> Network:
    """Put the weights of a run's checkpoint into a network; the way back to the user's class from a Trainer's run.

    >>> mine = ll.load_run(ll.split(MyNet(), depth=4, example=batch), "runs/mine", "best").merge()
    ... # doctest: +SKIP

    Args:
        network: made as the one that was trained, with ``ll.split`` and the same cuts and heads; whatever
            its weights are.
        run: the run's folder; training may go on in it.
        checkpoint: ``"last"`` (the newest that is whole), ``"best"``, or a step that is kept, such as ``"7800"``.

    Returns:
        The network, with the moving averages of the weights where the Trainer kept them: with these it was evaluated.

    Raises:
        UsageError: the folder is not a run.
        CheckpointError: it has no such checkpoint, only damaged ones, or those of another network.
    """
    if not isinstance(network, LocalNetwork):
        raise ConfigError("network", type(network).__name__, "a network from ll.split or ll.build_network")
    folder = RunFolder(Path(run))
    folder.config()
    path, found = _checkpoint(folder, checkpoint)
    load_network(network, found.tensors, path)
    for stage in network:
        for name, parameter in stage.own_parameters().items():
            average = found.tensors.get(f"average/{stage.name}/{name}")
            if average is not None:
                parameter.copy_(average)
    return network


def _checkpoint(folder: RunFolder, checkpoint: str) -> tuple[Path, Checkpoint]:
    """A checkpoint of a run, by ``last``, ``best`` or its step.

    Raises:
        CheckpointError: there is no such one, or it is damaged.
    """
    kept = CheckpointFolder(folder.checkpoints, 1)
    if checkpoint == "last":
        path, found, _ = kept.newest()
    else:
        path = folder.checkpoints / BEST if checkpoint == "best" else kept.at(checkpoint)
        found = load_checkpoint(path)
    if path is None or found is None:
        raise CheckpointError(f"{folder.path} has no checkpoint yet")
    return path, found
