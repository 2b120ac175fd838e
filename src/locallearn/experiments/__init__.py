"""Recipes: complete configurations by name."""
