"""Loss functions, and the local objectives made of them."""

# heads and objectives register themselves under their names
from locallearn.losses import infopro, masked, objectives, predsim, tokens, two_views
from locallearn.nn import auglocal, patch_head

__all__ = ["auglocal", "infopro", "masked", "objectives", "patch_head", "predsim", "tokens", "two_views"]
