"""How a record names a node: what wrote it, and what damage is."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

MOST_NODES = 100_000
"""Modules, or groups, that a record may name: larger numbers are damage, and nothing is to count up to them."""

Place = Annotated[int, Field(ge=1, le=MOST_NODES)]
"""A module or a group, counted from 1."""


class RecordedNode(BaseModel):
    """One node of a record; what was measured of it stands beside these fields."""

    model_config = ConfigDict(strict=True, extra="ignore")

    module: Place | Literal["classifier"]
    group: Place


_NODES = TypeAdapter(list[RecordedNode])


def are_nodes(values: Any) -> bool:
    """Whether they are objects with a module (or the classifier) and a group, which count from 1."""
    try:
        _NODES.validate_python(values, strict=True)
    except ValidationError:
        return False
    return True
