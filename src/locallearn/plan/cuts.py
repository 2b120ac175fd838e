"""Where modules end. A cut is the index of the block that it follows; the last block ends the last module anyway."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from locallearn.errors import ConfigError

DEPTHS = (1, 2, 4, 8, 16)
"""K that the planner tries."""

WIDTHS = (1, 2, 4, 8)
"""G that the planner tries."""

GN_DEPTHS = {2: (1, 2, 4, 8, 16), 4: (1, 2, 4, 8), 8: (1, 2, 4)}
"""K of the thesis's GN-DGL networks by G. A row KxG of Table 3.4 is their product: G = 2 starts at K = 1."""

# recipes of Sec. 3.3.2 (ResNet-32) and Fig. A.1 (ResNet-50, ResNet-110), as stage.block
TABLES: dict[str, dict[int, tuple[str, ...]]] = {
    "resnet32": {
        2: ("2.1",),
        4: ("1.2", "2.1", "3.0"),
        8: ("1.0", "1.2", "1.4", "2.1", "2.3", "3.0", "3.2"),
        16: ("stem", *(f"{s}.{b}" for s in (1, 2, 3) for b in range(5) if (s, b) != (3, 4))),
    },
    "resnet50": {
        2: ("3.0",),
        3: ("2.1", "3.3"),
        4: ("2.0", "3.0", "3.4"),
        8: ("1.1", "2.0", "2.2", "3.0", "3.2", "3.4", "4.0"),
        16: tuple(f"{s}.{b}" for s, n in ((1, 3), (2, 4), (3, 6), (4, 2)) for b in range(n)),
    },
    "resnet110": {
        2: ("2.8",),
        3: ("1.17", "2.17"),
        4: ("1.11", "2.7", "3.3"),
        8: ("1.4", "1.11", "2.0", "2.7", "2.14", "3.3", "3.10"),
        16: (
            *(f"1.{b}" for b in (1, 4, 7, 10, 13, 16)),
            *(f"2.{b}" for b in (1, 4, 7, 11, 15)),
            *(f"3.{b}" for b in (1, 5, 9, 13)),
        ),
    },
}


def balanced(costs: Sequence[float], depth: int) -> tuple[int, ...]:
    """Cut a chain of blocks into ``depth`` modules so that the most expensive module is as cheap as it can be.

    Among the cuts with the same largest module, the one with the smallest sum of squared costs is taken.

    Args:
        costs: cost of each block, in any unit.
        depth: number of modules K, at most ``len(costs)``.

    Returns:
        The K - 1 indices of the blocks that a cut follows.
    """
    prefix = [0.0]
    for cost in costs:
        prefix.append(prefix[-1] + cost)
    return balanced_by(lambda i, j: prefix[j] - prefix[i], len(costs), depth)


def balanced_by(cost: Callable[[int, int], float], n: int, depth: int) -> tuple[int, ...]:
    """The same where a module's cost is no sum over its blocks: heads differ from place to place.

    Args:
        cost: of a module of the blocks i to j - 1.
        n: number of blocks.
        depth: number of modules K, at most ``n``.
    """
    # best[k][j]: (largest, sum of squares, cuts) of the first j blocks in k modules
    best: list[dict[int, tuple[float, float, tuple[int, ...]]]] = [{0: (0.0, 0.0, ())}]
    for k in range(1, depth + 1):
        row = {}
        for j in range(k, n - (depth - k) + 1):
            row[j] = min(
                (max(worst, cost(i, j)), squares + cost(i, j) ** 2, (*cuts, i - 1))
                for i, (worst, squares, cuts) in best[k - 1].items()
                if i < j
            )
        best.append(row)
    return best[depth][n][2][1:]


def choose(
    family: str, names: Sequence[str], costs: Sequence[float], depth: int, cuts: Sequence[str]
) -> tuple[int, ...]:
    """Turn the settings ``depth`` and ``cuts`` into the indices of the blocks that a cut follows.

    ``("auto",)`` takes the thesis's table where it has this backbone and depth, and balanced cuts elsewhere;
    ``("balanced",)`` always balances; ``("layerwise",)`` cuts after every block; anything else names blocks.

    Raises:
        ConfigError: more modules than blocks, an unknown block, or names that do not fit ``depth``.
    """
    if depth > len(names):
        raise ConfigError("depth", depth, f"at most {len(names)}, the number of blocks of {family}")
    if tuple(cuts) == ("auto",):
        cuts = TABLES.get(family, {}).get(depth, ("balanced",))
    if tuple(cuts) == ("layerwise",):
        if depth != len(names):
            raise ConfigError("depth", depth, f"{len(names)}, the number of blocks of {family}, with layerwise cuts")
        return tuple(range(depth - 1))
    if tuple(cuts) == ("balanced",):
        return balanced(costs, depth)
    for name in cuts:
        if name not in names[:-1]:
            raise ConfigError("cuts", name, f"blocks of {family} other than the last: {', '.join(names[:-1])}")
    indices = tuple(names.index(name) for name in cuts)
    if len(indices) != depth - 1 or any(a >= b for a, b in pairwise(indices)):
        raise ConfigError("cuts", tuple(cuts), f"{depth - 1} rising block names, one fewer than depth")
    return indices


def modules(cuts: Sequence[int], n_blocks: int) -> tuple[range, ...]:
    """The blocks of every module, as ranges of indices."""
    edges = [0, *(cut + 1 for cut in cuts), n_blocks]
    return tuple(range(a, b) for a, b in pairwise(edges))
