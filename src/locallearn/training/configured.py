"""A training that a configuration describes completely: the network and the images are built from it."""

from __future__ import annotations

import torch

from locallearn.config import RunConfig
from locallearn.core.assembly import build_network
from locallearn.core.image_shape import ImageShape
from locallearn.core.network import LocalNetwork
from locallearn.data.datasets import Dataset
from locallearn.runtime.world import Alone, ProcessWorld
from locallearn.training.allocator import keep_freed_memory
from locallearn.training.evaluate import Evaluation, evaluate_run
from locallearn.training.initial import start_from
from locallearn.training.loop import Loop
from locallearn.training.observer import Observer
from locallearn.training.record import RunFolder
from locallearn.training.scorers import build_scorer
from locallearn.training.setup import image_shape, store_of
from locallearn.training.tried_parts import try_parts
from locallearn.training.work import Work


class Training(Loop):
    """Trains the network that a configuration describes, on the images that it names.

    Args:
        config: a resolved configuration.
        dataset: its data.
        folder: the run's folder.
        observer: is told how it goes.
        world: the processes; by default this one alone.
    """

    def __init__(
        self,
        config: RunConfig,
        dataset: Dataset,
        folder: RunFolder,
        observer: Observer,
        world: Alone | ProcessWorld | None = None,
    ) -> None:
        train = config.train
        assert train.device is not None
        device = world.device if isinstance(world, ProcessWorld) else torch.device(train.device)
        if train.threads:
            torch.set_num_threads(train.threads)
        if device.type == "cpu":
            keep_freed_memory()
        image = image_shape(dataset)
        network = _initial_network(config, image, device, observer)
        self.dataset = dataset
        self.train_store = store_of(config, dataset, dataset.train, device, config.augment, network)
        try_parts(network, config, self.train_store)
        self.test_store = store_of(config, dataset, dataset.test, device)
        held_out = dataset.validation
        self.validation_store = None if held_out is None else store_of(config, dataset, held_out, device)
        work = Work(
            network,
            self.train_store,
            self._evaluation,
            dataset.source,
            build_scorer(config, network, dataset),
            image,
            accumulate=train.accumulate,
            resume=f"continue with: locallearn train --resume {folder.path}",
            validate=None if held_out is None else self._validation,
        )
        super().__init__(config, work, folder, observer, world)

    def _evaluation(self, network: LocalNetwork) -> Evaluation:
        """Of a network, on the test images."""
        return evaluate_run(network, self.config, self.train_store, self.test_store)

    def _validation(self, network: LocalNetwork) -> Evaluation:
        """Of a network, on the training images that are held out."""
        assert self.validation_store is not None
        return evaluate_run(network, self.config, self.train_store, self.validation_store)


def _initial_network(config: RunConfig, image: ImageShape, device: torch.device, observer: Observer) -> LocalNetwork:
    """The network with the weights that its training begins with, as it lies in memory."""
    network = build_network(config, image).to(device)
    if config.init_from is not None:
        fresh = start_from(network, config)
        if fresh:
            told = f"the heads of modules {', '.join(fresh)} are not in it, and start from random weights"
            observer.on_warning(f"weights are from {config.init_from}; {told}")
    network.lay_out(bool(config.train.channels_last))
    return network
