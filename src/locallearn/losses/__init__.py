"""Loss functions, and the local objectives made of them."""

# heads and objectives register themselves under their names
from locallearn.losses import (
    infopro,
    input_similarity,
    masked,
    objectives,
    patch_infonce,
    predsim,
    rebuilt_input,
    supervised,
    tokens,
    two_views,
    without_backward,
)
from locallearn.losses import (
    trgl as transport,
)
from locallearn.nn import auglocal, flat_head, momentum, patch_head, ssl_head

__all__ = [
    "auglocal",
    "flat_head",
    "infopro",
    "input_similarity",
    "masked",
    "momentum",
    "objectives",
    "patch_head",
    "patch_infonce",
    "predsim",
    "rebuilt_input",
    "ssl_head",
    "supervised",
    "tokens",
    "transport",
    "two_views",
    "without_backward",
]
