"""Recipes: functions that return a complete configuration, by name.

``METHOD`` alone (``gn-dgl``) is a quick run on the embedded digits; ``MODEL-METHOD`` (``resnet32-gn-dgl``) follows
the thesis: Sec. 3.3.2 for ResNets, Sec. 3.3.1 for VGGs, Chapter 4 for methods without labels, on CIFAR-10. The
thesis has no vision transformers: their recipes (``vit-tiny-dgl``, ``vit-tiny-mae``) are customary settings.
``vgg6a-6group-gn-dgl`` has the widthwise split of the thesis's 6-Group. Every setting can then be changed.
"""

from __future__ import annotations

import dataclasses
import difflib
import re

from locallearn.arguments import checked
from locallearn.config import RunConfig
from locallearn.core.methods import methods
from locallearn.errors import UsageError
from locallearn.nn.backbones import backbones, build_backbone
from locallearn.recipes.common import METHODS, SELF_SUPERVISED
from locallearn.recipes.newer import VARIANTS
from locallearn.recipes.vits import vit
from locallearn.recipes.with_labels import labelled_digits, resnet, vgg
from locallearn.recipes.without_labels import masked_digits, self_supervised, self_supervised_digits

_GROUPED = ("gn-dgl", "single-thread")
"""Methods of several groups, which vision transformers cannot be split into."""


def digits(method: str) -> RunConfig:
    """A small network on scikit-learn's digits: seconds to train, above 97 % with every method that has labels."""
    if method in SELF_SUPERVISED:
        return self_supervised_digits(method)
    return masked_digits() if method == "mae" else labelled_digits(method)


@checked
def recipe(name: str) -> RunConfig:
    """The whole configuration behind a name, to be changed with ``dataclasses.replace`` and given to ``ll.train``.

    >>> config = dataclasses.replace(ll.recipe("gn-dgl"), depth=2, seed=1)  # doctest: +SKIP

    Args:
        name: a method alone (``gn-dgl``: ResNet-8 on the digits that come with scikit-learn), or a model and a method
            (``resnet32-gn-dgl``: the thesis's setting on CIFAR-10). ``locallearn recipes`` lists them.

    Raises:
        UsageError: no such recipe.
    """
    if name in METHODS or name in methods:
        return digits(name)
    for suffix, variant in sorted(VARIANTS.items(), key=lambda item: -len(item[0])):  # gn-auglocal before auglocal
        model = name.removesuffix(suffix)
        if model != name and (model == "" or model.endswith("-")):
            return variant.change(recipe(model + variant.method))
    for method in sorted({*METHODS, *methods}, key=len, reverse=True):  # gn-dgl before dgl
        model = name.removesuffix(f"-{method}")
        if model != name:
            return _on_cifar10(model, method)
    near = difflib.get_close_matches(name, recipe_names(), n=3)
    if near:
        raise UsageError(f"RECIPE: {name!r} is not known. Did you mean {' or '.join(near)}?")
    raise UsageError(
        f"RECIPE: {name!r} is not known; expected a method ({', '.join(METHODS)}) for the embedded digits, or "
        "MODEL-METHOD such as resnet32-gn-dgl; all of them: locallearn recipes"
    )


def _on_cifar10(model: str, method: str) -> RunConfig:
    split = re.fullmatch(r"(vgg.+)-([1-9]\d?)group", model)
    if split and method == "gn-dgl":
        build_backbone(split[1], 3, 32)  # refuses unknown models
        return vgg(split[1], method, int(split[2]))
    build_backbone(model, 3, 32)
    if model.startswith("vit-tiny"):
        return vit(model, method)
    if not model.startswith(("resnet", "vgg")):  # small, or a user's own: on the digits, for a first try
        return dataclasses.replace(digits(method), model=model)
    if method in SELF_SUPERVISED:
        return self_supervised(model, method)
    return (vgg if model.startswith("vgg") else resnet)(model, method)


def recipe_names() -> list[str]:
    """Every recipe by name. Models also take a width factor, as in ``resnet32x2-gn-dgl``."""
    splits = [f"vgg6a-{split}group-gn-dgl" for split in (4, 6, 8, 10)]
    pairs = [(model, method) for model in backbones for method in METHODS]
    named = [f"{model}-{method}" for model, method in pairs if _fits(model, method)]
    variants = [
        f"{model}-{name}" for model in backbones for name, variant in VARIANTS.items() if _fits(model, variant.method)
    ]
    return [*METHODS, *VARIANTS, *named, *variants, *splits]


def families() -> dict[str, tuple[str, ...]]:
    """The models that recipes name, by family: those of one family are trained in the same way."""
    found: dict[str, list[str]] = {"ResNet": [], "VGG": [], "ViT": [], "small": []}
    for model in backbones:
        known = [family for prefix, family in _PREFIXES.items() if model.startswith(prefix)]
        found[known[0] if known else "small"].append(model)
    return {family: tuple(sorted(models, key=_by_number)) for family, models in found.items() if models}


_PREFIXES = {"resnet": "ResNet", "vgg": "VGG", "vit-tiny": "ViT"}
"""What the names of models of a family begin with; recipes of all others are for a first try, on the digits."""


def _by_number(model: str) -> tuple[str, int]:
    """Sorts resnet8 before resnet18."""
    number = re.search(r"\d+", model)
    return re.sub(r"\d+.*", "", model), int(number[0]) if number else 0


def _fits(model: str, method: str) -> bool:
    """Whether the method can train the model: transformers have no groups, and nothing else has patches to hide."""
    return method not in (*_GROUPED, "greedy-infomax") if model.startswith("vit-") else method != "mae"
