"""Which settings of an objective belong to which losses."""

from __future__ import annotations

import dataclasses

from locallearn.config.objective import ObjectiveConfig
from locallearn.config.own_parts import OWN
from locallearn.errors import ConfigError

LOSSES_OF = {
    "infopro_loss": ("infopro",),
    "infopro_weights": ("infopro",),
    "predsim_inputs": ("predsim",),
    "predsim_weight": ("predsim",),
    "projection": ("nt-xent", "nt-xent-llm", "barlow-twins", "vicreg", "infopro"),
    "redundancy_weight": ("barlow-twins",),
    "temperature": ("nt-xent", "nt-xent-llm", "infopro"),
    "vicreg_weights": ("vicreg",),
}
"""The losses that read a setting, of the settings that not every loss reads."""


def check_settings(objective: ObjectiveConfig, loss: str, where: str = "objective") -> None:
    """Refuse settings that the loss would not read; a loss that a plugin registered may read all.

    Args:
        objective: what was set.
        loss: name of the local loss that nodes have.
        where: what the settings are part of, for messages.

    Raises:
        ConfigError: the message names the losses that the setting belongs to.
    """
    own = OWN["objective.loss"]
    if loss not in own:
        return
    read = {loss, getattr(objective.options, "of", loss)}
    for field in dataclasses.fields(objective):
        losses, value = LOSSES_OF.get(field.name), getattr(objective, field.name)
        if losses is None or not read.isdisjoint(losses) or value == field.default:
            continue
        if field.name == "temperature" and not hasattr(own[loss], "temperature"):
            continue  # recipes without labels have one, and a user may turn from them to another loss or method
        expected = f"its default with loss {loss}; it is a setting of {', '.join(losses)}"
        if hasattr(own[loss], field.name):
            expected += f" (that of {loss} is {where}.options.{field.name})"
        raise ConfigError(f"{where}.{field.name}", value, expected)
