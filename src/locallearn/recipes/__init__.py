"""Recipes: whole configurations by name (``locallearn.recipes.named``)."""
