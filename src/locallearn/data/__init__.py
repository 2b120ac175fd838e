"""Readers with checksums, the data set on the device, and augmentation drawn per image."""
