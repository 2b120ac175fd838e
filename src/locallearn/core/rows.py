"""Whether some rows of a batch can be computed apart from the others, as replicas of a user's model do.

Arguments of the model may have no row for each example (a mask of tokens by tokens), and be as long as the batch all
the same; and layers may look at several examples in ways of their own. Both are tried on a batch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from locallearn.core.batches import CalledBatch
from locallearn.core.stage_ends import at_ends
from locallearn.errors import ConfigError
from locallearn.nn.features import features_of, prediction
from locallearn.nn.hooks import removed_after
from locallearn.nn.modes import evaluating
from locallearn.nn.precision import precise
from locallearn.nn.replicas import batch_norm_is, positions, torch_batch_norm
from locallearn.seeding import seeded

if TYPE_CHECKING:
    from locallearn.core.split_network import SplitNetwork

MOST = 2
"""Arguments that are as long as the batch by chance, at most."""


def shared_arguments(network: SplitNetwork, batch: CalledBatch, parts: Sequence[range]) -> frozenset[str]:
    """The model's arguments that every replica needs whole: rows then give what they give in the whole batch.

    Args:
        network: all stages.
        batch: a batch to try it on.
        parts: the rows of every replica.

    Returns:
        Where they are, as in ``CalledBatch.tensors``.

    Raises:
        ConfigError: rows give something else, whichever arguments are whole.
    """
    assert batch.call is not None
    tensors = [(path, x) for path, x in batch.tensors() if x is not batch.call.first]
    others = {path for path, x in tensors if not x.dim() or len(x) != batch.examples}
    doubtful = [path for path, _ in tensors if path not in others]
    norms, reason = SameStatistics(), "their scores or features are others"
    whole = _evaluated(network, batch, norms)
    for more in itertools.chain(*(itertools.combinations(doubtful, n) for n in range(MOST + 1))):
        tried = dataclasses.replace(batch, shared=frozenset(others | {*more}))
        try:
            if all(_rows_of(whole, _evaluated(network, tried.rows(part), norms), part) for part in parts):
                return tried.shared
        except Exception as error:
            if not more:
                cause = error.__cause__ or error
                reason = f"{type(cause).__name__}: {cause}".splitlines()[0]
    expected = f"1 with a model that does not compute some rows of a batch as it does all of them: {reason}"
    raise ConfigError("replicas", len(parts), expected)


def check_apart(network: SplitNetwork, batch: CalledBatch, replicas: int) -> None:
    """Refuse a model in which an example depends on others in training, but for torch's ``batch_norm``.

    The model is called twice, the second time on the first example in every row, with the statistics of batch norms
    that the first time had.

    Raises:
        ConfigError: it is one; the message names the layer.
    """
    before = {name: value.clone() for name, value in network.named_buffers()}
    norms = SameStatistics()
    looks = []
    try:
        for given in (batch, batch.converted(lambda x: x[:1].expand_as(x).clone())):
            for name, value in network.named_buffers():
                value.copy_(before[name])
            with _noting(network.model, given.examples) as noted:
                outputs = _outputs(network, given, norms)
            after = {name: value.clone() for name, value in network.named_buffers() if id(value) not in norms.running}
            looks.append((outputs, noted, after))
    finally:
        for name, value in network.named_buffers():
            value.copy_(before[name])
    (outputs, noted, after), (again, noted_again, after_again) = looks
    if not _rows_of(outputs, again, range(1)):
        pairs = zip(noted, noted_again, strict=False)
        layer = next((path for (path, row), (_, other) in pairs if not _alike(row, other)), "some layer")
        expected = f"1 with a model whose examples depend on others, not by torch's batch_norm alone: {layer}"
        raise ConfigError("replicas", replicas, expected)
    changed = [name for name, value in after.items() if not _alike(value, after_again[name])]
    if changed:
        expected = f"1 with {changed[0]}, which training sets to what a whole batch has"
        raise ConfigError("replicas", replicas, expected)


def _outputs(network: SplitNetwork, batch: CalledBatch, norms: SameStatistics) -> list[Tensor | None]:
    """Features where stages end, examples first, and scores; what is drawn is the same at every call."""
    found: list[Tensor | None] = []

    def ended(k: int, output: Any) -> None:
        features = features_of(output)
        assert features is not None
        found.append(network.pieces[k].layout.ordered(features))

    ends = at_ends(network.model, network.pieces[:-1], ended)
    with torch.no_grad(), seeded(0, "replicas"), norms.answering(), ends:
        scores = prediction(network.output(batch))
    first = network.pieces[-1].layout.batch
    return [*found, scores if scores is None or scores.dim() <= first else scores.movedim(first, 0)]


def _evaluated(network: SplitNetwork, batch: CalledBatch, norms: SameStatistics) -> list[Tensor | None]:
    """The same in eval mode."""
    with evaluating(network):
        return _outputs(network, batch, norms)


@contextlib.contextmanager
def _noting(model: nn.Module, examples: int) -> Iterator[list[tuple[str, Tensor]]]:
    """While it lasts, note the first row of what layers without layers in them give, by path, in order."""
    noted: list[tuple[str, Tensor]] = []

    def note(path: str, _module: nn.Module, _args: Any, output: Any) -> None:
        features = features_of(output)
        if features is not None and features.dim() and len(features) == examples:
            noted.append((path, features[0].clone()))

    layers = [(path, part) for path, part in model.named_modules() if not any(part.children())]
    with removed_after([part.register_forward_hook(partial(note, path)) for path, part in layers]):
        yield noted


class SameStatistics:
    """What batch norms look at in a batch the first time is what they are given every time after it.

    Attributes:
        running: ids of their running statistics.
    """

    def __init__(self) -> None:
        self.running: set[int] = set()
        self._noted: list[tuple[Tensor, Tensor]] = []
        self._given: Iterator[tuple[Tensor, Tensor]] | None = None

    def answering(self) -> contextlib.AbstractContextManager[None]:
        """While it lasts, torch's ``batch_norm`` does so."""
        self._given = iter(self._noted) if self._noted else None
        return batch_norm_is(self._answer)

    def _answer(self, x: Tensor, mean: Tensor | None, var: Tensor | None, *more: Any) -> Tensor:
        weight, bias, training, momentum, eps = more
        if self._given is None:
            self.running |= {id(mean), id(var)}
            var_C, mean_C = torch.var_mean(precise(positions(x)), (0, 2), correction=0)
            dtype = x.dtype if mean is None else mean.dtype
            self._noted.append((mean_C.to(dtype), var_C.to(dtype)))
            return torch_batch_norm(x, mean, var, weight, bias, training, momentum, eps)
        given = next(self._given, None)
        if given is None:
            return torch_batch_norm(x, mean, var, weight, bias, training, momentum, eps)
        return torch_batch_norm(x, *given, weight, bias, False, momentum, eps)


def _rows_of(whole: Sequence[Tensor | None], own: Sequence[Tensor | None], span: range) -> bool:
    """Whether outputs are these rows of the whole batch's; of those without a row for each example it is unknown."""
    given = [(a, b) for a, b in zip(whole, own, strict=True) if a is not None and b is not None]
    pairs = [(a, b) for a, b in given if a.dim() and b.dim() and a.shape[1:] == b.shape[1:]]
    return all(_alike(a[span.start : span.stop], b[: len(span)]) for a, b in pairs)


def _alike(a: Tensor, b: Tensor | None) -> bool:
    """Whether tensors differ by no more than rounding."""
    if b is None or a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    tolerance = max(1e-3, 8 * torch.finfo(a.dtype).eps)
    return bool(torch.allclose(a, b, tolerance, tolerance * float(a.abs().amax()), equal_nan=True))
