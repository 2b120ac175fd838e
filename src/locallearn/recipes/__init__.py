"""Recipes: whole configurations by name (:mod:`locallearn.recipes.named`)."""
