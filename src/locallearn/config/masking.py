"""Masked autoencoding: what is hidden, and what rebuilds it."""

from __future__ import annotations

from dataclasses import dataclass

from locallearn.arguments import checked_fields
from locallearn.config.checks import MOST_UNITS, STRICT, check, is_real, positive_int


@checked_fields
@dataclass(frozen=True)
class MaskingConfig:
    """What method mae hides of every image, and the decoder of every module that rebuilds it."""

    __pydantic_config__ = STRICT

    ratio: float = 0.75
    """Share of an image's patches that are hidden; at least one is hidden and one visible."""
    decoder_width: int = 128
    """Channels of a decoder's tokens, times the model's width factor."""
    decoder_depth: int = 1
    """Transformer blocks of a decoder."""
    normalised: bool = True
    """Rebuild pixels less their patch's mean, over its standard deviation, in place of pixels in [0, 1]."""

    def __post_init__(self) -> None:
        check("objective.masking.ratio", self.ratio, lambda v: is_real(v) and 0 < v < 1, "a number between 0 and 1")
        for name, most in {"decoder_width": MOST_UNITS, "decoder_depth": 1000}.items():
            positive_int(f"objective.masking.{name}", getattr(self, name), most)
