"""One process of a test: trains one case after the other with the processes beside it.

Called with a folder that holds ``NAME.toml`` for every case; writes the run ``NAME`` beside it. A case whose name
is that of a fault in ``FAULTS`` is trained with it, on the last rank; one that begins with ``fp64_`` in fp64.
"""

import contextlib
import dataclasses
import os
import sys
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

from locallearn.config import from_toml
from locallearn.core import local_step as core
from locallearn.data.store import Batch, ImageStore
from locallearn.losses import two_views
from locallearn.nn import groups
from locallearn.runtime.transport import GRADIENTS, WEIGHTS, Sender
from locallearn.runtime.width_peers import ProcessPeers
from locallearn.training import runs


@contextlib.contextmanager
def patched(owner, name, value):
    old = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, old)


def halved_gradient():
    """The optimizer sees half of the gradient."""
    step = torch.optim.SGD.step

    def halved(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad *= 0.5
        return step(self)

    return patched(torch.optim.SGD, "step", halved)


def lost_batch():
    """One step does not train."""
    call = core.LocalStep.__call__

    def sometimes(self, features, batch, index=0, rate=None, hand_on=None):
        if index != 3:
            return call(self, features, batch, index, rate, hand_on)
        with patched(self.optimizer, "step", lambda: None):
            return call(self, features, batch, index, rate, hand_on)

    return patched(core.LocalStep, "__call__", sometimes)


def halved_weights():
    """A module sends half of the weights that the one before it follows."""
    put = Sender.put

    def halved(self, features, step, last=False):
        put(self, tuple(x / 2 for x in features) if self.kind >= WEIGHTS else features, step, last)

    return patched(Sender, "put", halved)


def halved_returns():
    """A module gives back half of the gradient that the one before it waits for."""
    put = Sender.put

    def halved(self, features, step, last=False):
        put(self, features / 2 if self.kind == GRADIENTS else features, step, last)

    return patched(Sender, "put", halved)


def own_statistics():
    """Batch norm looks at its own part of the batch only; gradients are added up as they should be."""
    exchange = ProcessPeers.batch_sums

    def local(self, sums):
        own = sums * self.replicas
        found = exchange(self, sums)
        return found if torch.is_grad_enabled() else own

    return patched(ProcessPeers, "batch_sums", local)


def own_gradient():
    """Replicas do not add up their gradients."""

    def lost(self, parameters):
        self.batch_sums(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]))

    return patched(ProcessPeers, "sum_gradients", lost)


def stale_features():
    """What other groups are seen as is nothing."""
    gather = ProcessPeers.gather_groups

    def nothing(self, x, dim):
        found = gather(self, x, dim)
        return found * 0.5

    return patched(ProcessPeers, "gather_groups", nothing)


def coarser_features():
    """What other groups send, pooled, is put back in the wrong place."""
    enlarged = groups.enlarged

    def shifted(*given):
        return enlarged(*given).roll(1, 2)

    return patched(groups, "enlarged", shifted)


def wrong_labels():
    """Batches of this process are of other images than those of the others."""
    epoch = ImageStore.epoch

    def shifted(self, number, *rest):
        for batch in epoch(self, number, *rest):
            yield Batch(batch.images, batch.labels.roll(1), batch.pixels, batch.step)

    return patched(ImageStore, "epoch", shifted)


def mispaired_views():
    """Views of other images are taken for a pair."""
    whole = two_views._whole_batch

    def rolled(projections):
        first, second = whole(projections).chunk(2, 1)
        return torch.cat([first, second.roll(1, 1)], 1)

    return patched(two_views, "_whole_batch", rolled)


def other_views():
    """This process draws other views than the others."""
    epoch = ImageStore.epoch

    def later(self, number, *rest):
        return epoch(self, number + 1, *rest)

    return patched(ImageStore, "epoch", later)


@contextlib.contextmanager
def default_dtype(dtype):
    old = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(old)


@contextlib.contextmanager
def in_fp64():
    """Train in double precision, which is none of the package's: sums in another order then differ by 1e-13."""
    batch, make = ImageStore.made, ImageStore._make

    def double(self, images, labels, step):
        found = batch(self, images, labels, step)
        return dataclasses.replace(found, images=found.images.double(), pixels=found.pixels.double())

    def augmented(self, *which):
        with default_dtype(torch.float32):
            return make(self, *which)

    with default_dtype(torch.float64), patched(ImageStore, "made", double), patched(ImageStore, "_make", augmented):
        yield


FAULTS = {
    fault.__name__: fault
    for fault in (
        halved_gradient,
        lost_batch,
        halved_weights,
        halved_returns,
        own_statistics,
        own_gradient,
        stale_features,
        coarser_features,
        wrong_labels,
        mispaired_views,
        other_views,
    )
}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for path in sorted(folder.glob("*.toml")):
        name = path.stem.removeprefix("fp64_")
        fault = FAULTS.get(name) if dist.get_rank() == dist.get_world_size() - 1 else None
        fp64 = in_fp64 if name != path.stem else None
        with (fault or contextlib.nullcontext)(), (fp64 or contextlib.nullcontext)():
            runs.train(from_toml(path.read_text()), folder / path.stem)
    dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except BaseException:  # leave as locallearn.cli.main.program does: a thread may wait for a peer that is gone
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
