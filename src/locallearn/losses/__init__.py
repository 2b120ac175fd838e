"""Loss functions, and the local objectives made of them."""

# the objectives register themselves under the names of their losses
from locallearn.losses import infopro, masked, objectives, predsim, tokens, two_views

__all__ = ["infopro", "masked", "objectives", "predsim", "tokens", "two_views"]
