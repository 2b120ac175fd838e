"""Blocks, grouped layers, auxiliary heads and backbones."""
