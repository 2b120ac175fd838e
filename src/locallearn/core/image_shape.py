"""What a network is built for."""

from __future__ import annotations

from dataclasses import dataclass

from locallearn.arguments import checked_fields
from locallearn.config import ImageSize, sides, size_of
from locallearn.config.checks import positive_int
from locallearn.config.data import is_size
from locallearn.errors import ConfigError


@checked_fields
@dataclass(frozen=True)
class ImageShape:
    """What the network is built for: channels and size of the images, and the number of classes.

    The size is the side of square images, or (height, width) [pixels].
    """

    channels: int
    size: ImageSize
    classes: int

    def __post_init__(self) -> None:
        if not is_size(self.size if isinstance(self.size, int) else tuple(self.size)):
            raise ConfigError("ImageShape: size", self.size, "a whole number, or two (height and width)")
        object.__setattr__(self, "size", size_of(*sides(self.size)))  # as files have it: a list, or two equal sides
        for name, value in (("channels", self.channels), ("size", min(sides(self.size))), ("classes", self.classes)):
            positive_int(f"ImageShape: {name}", value)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        return self.channels, *sides(self.size)
