"""Images that worker processes read ahead of training; and the choice between that and one tensor."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from locallearn.config import AugmentConfig, DataConfig
from locallearn.data.augment import crop_boxes
from locallearn.data.datasets import Dataset, ImageSet, ImagesOnDisk
from locallearn.data.patches import Masking
from locallearn.data.store import Augmentation, Batch, ImageStore, StepImages, Store, view_seeds
from locallearn.errors import DataError, LocalLearnError
from locallearn.files import short_temporary_folder

PART_OF_MEMORY = 8
"""A set that takes less than this part of the device's memory is held there as a whole."""


def open_store(
    images: ImageSet | ImagesOnDisk,
    dataset: Dataset,
    augment: AugmentConfig | Augmentation | None,
    device: torch.device | str,
    seed: int,
    channels_last: bool = True,
    views: int = 1,
    masking: Masking | None = None,
    data: DataConfig | None = None,
) -> Store:
    """Batches of images, which are held on the device where they fit, else read from the disk when they are needed.

    The batches are the same either way.

    Args:
        images: the images.
        dataset: see ``locallearn.data.store.Store`` for these.
        augment: see there.
        device: see there.
        seed: see there.
        channels_last: see there.
        views: see there.
        masking: see there.
        data: how much may be held, and how many processes read.
    """
    data = data or DataConfig()
    settings = (dataset, augment, device, seed, channels_last, views, masking)
    if isinstance(images, ImageSet):
        return ImageStore(images, *settings)
    streamed = StreamedStore(images, *settings, workers=data.workers)
    limit = memory(torch.device(device)) / PART_OF_MEMORY if data.memory_gib is None else data.memory_gib * 2**30
    if streamed.cuts or np.prod(images.shape) * len(images.labels) > limit:
        return streamed
    return ImageStore(images.decoded(), *settings)


def memory(device: torch.device) -> int:
    """Memory of a device, or of the machine for a CPU [bytes]."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class StreamedStore(Store):
    """Images that processes read and decode some steps ahead; what is changed on the device is changed there.

    Random parts (``augment.resized_crop``) are cut out of the images as they are stored, by the processes, unless all
    have the size already that they are given at.

    Args:
        images: the images.
        others: as for ``locallearn.data.store.Store``, from ``dataset`` on.
        workers: processes that read; 0 reads where the batch is asked for. By default as many as there are cores.
    """

    def __init__(self, images: ImagesOnDisk, *others: Any, workers: int | None = None, **options: Any) -> None:
        super().__init__(images.labels, *others, **options)
        self._on_disk, self._workers = images, default_workers() if workers is None else workers
        self._crop: AugmentConfig | None = None
        if self._augment is not None and self._augment.resized_crop is not None and not _all_of_size(images):
            self._crop, self._augment = self._augment, dataclasses.replace(self._augment, resized_crop=None)

    @property
    def cuts(self) -> bool:
        """Whether parts are cut out of images that are larger than what a network is given."""
        return self._crop is not None

    def ordered(self, batch_size: int) -> Iterator[Batch]:
        """All images in their own order and unchanged, for evaluation; a single last image is kept."""
        batches = torch.arange(len(self._labels)).split(batch_size)
        images = self._read(_Steps(self._on_disk, [chosen.numpy() for chosen in batches]))
        for step, chosen in enumerate(batches):
            yield self.made(images(step)[0], self._labels[chosen.to(self.device)], step)

    def _images_of(self, batches: Sequence[Tensor], epoch: int) -> StepImages:
        positions = [chosen.cpu().numpy() for chosen in batches]
        images = self._read(_Steps(self._on_disk, positions, self._crop, self._seed, epoch, self._views))
        return images if self.cuts else lambda step: images(step) * self._views

    def _boxes(self, chosen: Tensor, seed: int) -> Tensor:
        if self._crop is None:
            return super()._boxes(chosen, seed)
        return _drawn_boxes(self._crop, self._on_disk, chosen.cpu().numpy(), seed)

    def _read(self, steps: _Steps) -> StepImages:
        ahead = _ReadAhead(steps, self._workers, self.device.type == "cuda")
        return lambda step: [
            view.to(self.device, non_blocking=True).permute(0, 3, 1, 2) for view in ahead.views(step)
        ]


def default_workers() -> int:
    """The cores that this process may use, or its part of them where others of the same run are on this machine."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def _all_of_size(images: ImagesOnDisk) -> bool:
    return bool((images.sizes == images.shape[1:]).all())


def _drawn_boxes(crop: AugmentConfig, images: ImagesOnDisk, positions: np.ndarray, seed: int) -> Tensor:
    height, width = torch.from_numpy(images.sizes[positions]).unbind(1)
    return crop_boxes(crop, len(positions), height, width, seed)


@dataclasses.dataclass(frozen=True)
class _Steps:
    """Steps of an epoch: uint8 [B, H, W, C] for every view that is cut out, or once; and what failed."""

    images: ImagesOnDisk
    positions: Sequence[np.ndarray]
    crop: AugmentConfig | None = None
    seed: int = 0
    epoch: int = 0
    n_views: int = 1

    def __getitem__(self, step: int) -> tuple[list[Tensor], str]:
        chosen, boxes = self.positions[step], []
        if self.crop is not None:
            seeds = view_seeds(self.seed, self.epoch, step, self.n_views)
            boxes = [_drawn_boxes(self.crop, self.images, chosen, seed).numpy() for seed in seeds]
        try:
            return [torch.from_numpy(view) for view in self.images.read(chosen.tolist(), boxes)], ""
        except DataError as error:  # a loader would wrap it in the worker's traceback
            return [], str(error)


class _ReadAhead:
    """Asks processes for the steps to come, in order.

    The first step that is asked for is read here, so that who wants one batch only starts no process.
    """

    def __init__(self, steps: _Steps, workers: int, pin: bool) -> None:
        self._steps, self._workers, self._pin = steps, workers, pin
        self._lock = threading.Lock()
        self._asked = False
        self._coming: Iterator[tuple[list[Tensor], str]] | None = None
        self._next = 0

    def views(self, step: int) -> list[Tensor]:
        """Images of a step.

        Raises:
            DataError: one is damaged.
        """
        with self._lock:
            found, problem = self._take(step)
        if problem:
            raise DataError(problem)
        return found

    def _take(self, step: int) -> tuple[list[Tensor], str]:
        if not self._workers or not self._asked or (self._coming is not None and step < self._next):
            self._asked = True
            return self._steps[step]
        if self._coming is None:
            self._coming, self._next = self._start(step), step
        try:
            while True:
                found = next(self._coming)
                self._next += 1
                if self._next > step:
                    return found
        except RuntimeError as error:
            raise LocalLearnError(
                f"a process that reads images ended ({str(error).splitlines()[0]}); try fewer (data.workers)"
            ) from None

    def _start(self, step: int) -> Iterator[tuple[list[Tensor], str]]:
        short_temporary_folder()
        loader = DataLoader(
            self._steps,  # type: ignore[arg-type]
            batch_size=None,
            sampler=range(step, len(self._steps.positions)),
            num_workers=self._workers,
            collate_fn=_as_it_is,
            pin_memory=self._pin,
            worker_init_fn=_leave_signals_to_parent,
            generator=torch.Generator(),  # else it draws from the global one
        )
        return iter(loader)


def _as_it_is(item: Any) -> Any:
    return item


def _leave_signals_to_parent(worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal; the parent ends its workers when it has stopped."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
