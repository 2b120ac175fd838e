"""Any iterable of batches of the user's own as a source of training examples, resumable where it can be."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from locallearn import seeding
from locallearn.core.local_step import DRAWING, autocast
from locallearn.core.network import LocalNetwork
from locallearn.data.store import Batch
from locallearn.errors import UsageError
from locallearn.nn.features import map_tensors, tensors_of

T = TypeVar("T")


class LoaderSource:
    """Batches of a ``DataLoader``, a list or any other iterable, on the device of the network.

    Every epoch begins with generators that are seeded by (seed, epoch): torch's, NumPy's and Python's, which are the
    loader's own while it makes a batch and are put back after it. So a shuffled ``DataLoader`` gives the same batches
    when an epoch is begun again, and a training that stopped in the middle of one leaves out those that it has seen.

    Args:
        loader: gives batches; again in every epoch.
        given: makes of a batch what stages take.
        device: where batches go.
        seed: of the run.
        at_once: whether several batches are on their way at the same time.

    Raises:
        UsageError: it is no iterable, or can be read only once.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        given: Callable[[Any], Batch],
        device: torch.device,
        seed: int,
        at_once: bool = False,
    ) -> None:
        check_loader("loader", loader)
        self.loader, self.given, self.device, self.seed, self.at_once = loader, given, device, seed, at_once
        self.goes_on = bool(getattr(loader, "persistent_workers", False))
        """Whether processes of the loader keep what they draw from into the next epoch."""

    def steps(self, batch_size: int) -> int | None:
        """Batches of an epoch; None where the loader does not say."""
        try:
            return len(self.loader)  # type: ignore[arg-type]
        except (TypeError, NotImplementedError):
            return None

    def smallest(self, batch_size: int) -> int:
        """Examples of the smallest batch: not known."""
        return 0

    def epoch(self, epoch: int, batch_size: int, start: int = 0) -> Iterator[Batch]:
        """Batches of an epoch from ``start`` on; those before it are made and left out."""
        own = _OwnMemory() if self.at_once else None
        for step, batch in enumerate(self._seeded(epoch)):
            if step >= start:
                here = moved(batch, self.device)
                yield self.given(here if own is None else own.of(here))

    def _seeded(self, epoch: int) -> Iterator[Any]:
        draws = _Draws(seeding.derive(self.seed, "loader", epoch))
        for part in _samplers(self.loader):
            if callable(getattr(part, "set_epoch", None)):
                part.set_epoch(epoch)
            own = getattr(part, "generator", None)
            if isinstance(own, torch.Generator):
                own.manual_seed(seeding.derive(self.seed, "loader", epoch))
        with draws:
            batches = iter(self.loader)
        while True:
            with draws:
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            yield batch


def _samplers(loader: Any) -> Iterator[Any]:
    """A loader and what chooses its examples: samplers, of batches too, and those inside them."""
    waiting, seen = [loader], set[int]()
    while waiting:
        part = waiting.pop()
        if part is not None and id(part) not in seen:
            seen.add(id(part))
            yield part
            waiting += [getattr(part, name, None) for name in ("sampler", "batch_sampler")]


class _OwnMemory:
    """Gives batches memory of their own where a loader fills the same memory again for the next one.

    The first batch of an epoch is copied; the others are from where one lies in the memory of the one before.
    """

    def __init__(self) -> None:
        self._before: list[Tensor] = []

    def of(self, batch: Any) -> Any:
        """The batch, or a copy."""
        tensors = [x for x in tensors_of(batch) if x.layout == torch.strided and x.numel()]
        places = {x.data_ptr() for x in self._before}
        again = any(x.data_ptr() in places for x in tensors)
        copies = again or not self._before
        self._before = tensors  # held, so that nothing new comes to lie there
        return map_tensors(batch, torch.clone) if copies else batch


class _Draws:
    """Generators of a loader's own, which are torch's, NumPy's and Python's while it is entered."""

    def __init__(self, seed: int) -> None:
        self._own: tuple[Any, ...] = ()
        self._seed = seed
        self._others: tuple[Any, ...] = ()

    def __enter__(self) -> None:
        DRAWING.acquire()
        self._others = _states()
        if self._own:
            _put(self._own)
        else:
            torch.default_generator.manual_seed(self._seed)
            np.random.seed(self._seed % 2**32)
            random.seed(self._seed)

    def __exit__(self, *exception: object) -> None:
        self._own = _states()
        _put(self._others)
        DRAWING.release()


def _states() -> tuple[Any, ...]:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def _put(states: tuple[Any, ...]) -> None:
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])


def check_loader(name: str, loader: object) -> None:
    """Refuse what gives no batches, or gives them only once.

    Raises:
        UsageError: it is such a thing.
    """
    if not isinstance(loader, Iterable) or (isinstance(loader, Tensor) and not loader.dim()):
        raise UsageError(f"{name}: {type(loader).__name__} is not valid; expected an iterable of batches")
    if isinstance(loader, Iterator):
        raise UsageError(
            f"{name}: {type(loader).__name__} can be read only once; expected a list or a DataLoader, which "
            "gives its batches again in every epoch"
        )


@torch.no_grad()
def read_network(
    network: LocalNetwork, loader: Iterable[Any], read: Callable[[Batch], T], precision: str
) -> Iterator[tuple[Batch, T]]:
    """Every batch of a loader, on the network's device, and what is read of it in eval mode, without gradient.

    The network's mode is put back at the end.
    """
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    try:
        for batch in loader:
            given = network.given_batch(moved(batch, device), labelled=False)
            with autocast(device, precision):
                found = read(given)
            yield given, found
    finally:
        network.train(was_training)


def moved(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on a device; NumPy's arrays become tensors."""
    if dataclasses.is_dataclass(batch) and not isinstance(batch, (type, Batch)):
        fields = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        return dataclasses.replace(batch, **{name: moved(value, device) for name, value in fields.items()})
    batch = tree_map_only(np.ndarray, torch.from_numpy, batch)
    if device.type == "cpu":
        return batch
    return tree_map_only(Tensor, lambda x: x.to(device, non_blocking=True), batch)


def joined(found: Sequence[Tensor]) -> Tensor:
    """What was read of every batch, put together.

    Raises:
        UsageError: there is nothing, or their shapes differ beside the number of examples.
    """
    if not found:
        raise UsageError("loader: it gave no batch")
    other = next((x for x in found if x.shape[1:] != found[0].shape[1:]), None)
    if other is not None:
        shapes = f"{tuple(found[0].shape)} and {tuple(other.shape)}"
        expected = "examples on the first dimension and all else alike, as where texts are padded to one length"
        raise UsageError(f"loader: batches give {shapes}, which do not go together; expected {expected}")
    return torch.cat(list(found))
