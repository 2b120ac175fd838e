"""Readers with checksums, the data set on the device, and augmentation drawn per image."""

# A reader registers itself where it is imported.
from locallearn.data import cifar, digits, folder, imagenet32, packed

__all__ = ["cifar", "digits", "folder", "imagenet32", "packed"]
