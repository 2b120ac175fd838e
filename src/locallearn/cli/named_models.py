"""Models that others wrote, by name, with a batch: of timm, or of a transformers configuration."""

from __future__ import annotations

import ast
import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from locallearn.cli.own_model import SHORT_NAMES
from locallearn.config import ImageSize, sides
from locallearn.errors import UsageError, one_line
from locallearn.nn.features import prediction


@dataclass(frozen=True)
class Inputs:
    """What batches are made of where the model's name does not bring one along.

    Attributes:
        batch_size: examples a step.
        image_size: side of an image [pixels]; None for what the model was made for, else 224.
        tokens: length of a text.
    """

    batch_size: int = 8
    image_size: int | None = None
    tokens: int = 256


def named_model(name: str, inputs: Inputs, option: str) -> tuple[nn.Module, Any]:
    """A model in training mode with random weights, and a random batch, the same at every call.

    Args:
        name: ``hf:CONFIG[?setting=value&...]`` (a model type of transformers, or a folder or file of a configuration;
            nothing is downloaded), or ``timm:NAME``.
        inputs: what a batch is made of.
        option: how messages name what was given.

    Raises:
        UsageError: there is no such model, or a package is missing.
    """
    kind, _, rest = SHORT_NAMES.get(name, name).partition(":")
    torch.manual_seed(0)
    try:
        model, batch = (_timm if kind == "timm" else _transformers)(rest, inputs)
    except UsageError as error:
        raise UsageError(f"{option}: {error}") from error
    return model.train(), batch


def _timm(name: str, inputs: Inputs) -> tuple[nn.Module, Any]:
    timm: Any = _package("timm", f"timm:{name}")
    name, settings = _settings(name)
    if ":" in name or "/" in name:
        raise UsageError(f"timm:{name} is no model of timm's own; expected a name of timm.list_models()")
    try:
        model = timm.create_model(name, pretrained=False, **settings)
    except Exception as error:
        raise UsageError(f"timm:{name}: {type(error).__name__}: {one_line(error)[:300]}") from error
    channels, height, width = model.default_cfg.get("input_size", (3, 224, 224))
    size = inputs.image_size or settings.get("img_size") or (height, width)
    return model, random_images(model, settings.get("in_chans", channels), size, inputs.batch_size)


def _transformers(given: str, inputs: Inputs) -> tuple[nn.Module, Any]:
    transformers: Any = _package("transformers", f"hf:{given}")
    transformers.logging.set_verbosity_error()
    name, settings = _settings(given)
    pictures = "image_size" in settings or inputs.image_size is None
    try:
        if "/" in name or name.endswith(".json"):
            only = {"local_files_only": True, "trust_remote_code": False}
            config = transformers.AutoConfig.from_pretrained(name, **only, **settings)
        else:
            config = transformers.AutoConfig.for_model(name, **settings)
    except Exception as error:
        raise UsageError(f"hf:{given}: {type(error).__name__}: {one_line(error)[:300]}") from error
    if hasattr(config, "image_size") and not pictures:
        config.image_size = inputs.image_size
    if hasattr(config, "use_cache"):
        config.use_cache = False
    kind = _auto_class(transformers, config, given)
    if kind == "AutoModelForImageClassification" and "num_labels" not in settings:
        config.num_labels = 1000
    model = getattr(transformers, kind).from_config(config, trust_remote_code=False)
    return model, _hf_batch(kind, config, inputs)


def _auto_class(transformers: Any, config: Any, given: str) -> str:
    """What the model is for: the first of these that transformers has for its configuration."""
    kinds = ["ImageClassification", "Seq2SeqLM", "MaskedLM", "CausalLM"]
    for kind in kinds:
        if type(config) in getattr(transformers, f"AutoModelFor{kind}")._model_mapping:
            return f"AutoModelFor{kind}"
    expected = "a configuration of an image classifier or a language model"
    raise UsageError(f"hf:{given}: transformers has none of {', '.join(kinds)} for it; expected {expected}")


def _hf_batch(kind: str, config: Any, inputs: Inputs) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    if kind == "AutoModelForImageClassification":
        side = getattr(config, "image_size", None) or inputs.image_size or 224
        size = (side, side) if isinstance(side, int) else tuple(side)
        pixels = torch.randn(inputs.batch_size, getattr(config, "num_channels", 3), *size, generator=draw)
        labels = torch.randint(config.num_labels, (inputs.batch_size,), generator=draw)
        return {"pixel_values": pixels, "labels": labels}
    text = config.get_text_config()
    longest = getattr(text, "max_position_embeddings", None) or inputs.tokens
    ids = torch.randint(text.vocab_size, (inputs.batch_size, min(inputs.tokens, longest)), generator=draw)
    return {"input_ids": ids, "labels": ids}


def random_images(model: nn.Module, channels: int, size: ImageSize, batch_size: int) -> tuple[Tensor, Tensor]:
    """Random images and, for as many classes as the model scores, labels."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, channels, *sides(size), generator=draw)
    try:
        with torch.no_grad(), torch.random.fork_rng():
            scores = prediction(model.eval()(images[:1]))
    except Exception as error:
        said = f"{type(error).__name__}: {one_line(error)[:300]}"
        raise UsageError(f"the model does not run on images {tuple(images.shape)}: {said}") from error
    if scores is None or scores.dim() != 2:
        raise UsageError("the model gives no scores [B, classes]; expected a pair (model, batch)")
    return images, torch.randint(scores.shape[1], (batch_size,), generator=draw)


def _settings(given: str) -> tuple[str, dict[str, Any]]:
    """A name, and the settings behind its question mark, as Python values where they are such."""
    name, _, query = given.partition("?")
    found: dict[str, Any] = {}
    for each in filter(None, query.split("&")):
        key, equals, value = each.partition("=")
        if not equals or not key:
            raise UsageError(f"{each!r} in {given!r} is not valid; expected setting=value")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = {"true": True, "false": False}.get(value.lower(), value)
    return name, found


def _package(name: str, given: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # it may be there and not work, as timm without torchvision
        said = f"{type(error).__name__}: {one_line(error)}"
        raise UsageError(f"{given} needs the package {name}, which cannot be imported: {said}") from error
