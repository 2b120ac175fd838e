"""Multiply-accumulates of whatever a user's own model computes, operator by operator."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


class ProductCounter(FlopCounterMode):
    """Counts the multiply-accumulates of matrix products, convolutions and attention while it is entered.

    It is torch's ``FlopCounterMode``, by two, which knows no formula for the attention of CPUs. Torch's own counts by
    module too, and for that follows gradients in a way that forward passes with a backward pass of their own
    (reversible layers, forces of an energy) do not bear.
    """

    def __init__(self) -> None:
        aten = torch.ops.aten
        super().__init__(
            display=False,
            custom_mapping={
                aten._scaled_dot_product_flash_attention_for_cpu: _attention,
                aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
            },
        )
        self.mod_tracker = _Whole()  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def macs(self) -> int:
        """All so far."""
        return self.get_total_flops() // 2


class _Whole:
    """All modules as one."""

    parents = ("Global",)

    def __enter__(self) -> None:
        """Nothing to follow."""

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)
