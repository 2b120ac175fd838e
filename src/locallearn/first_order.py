"""Backward passes of our own give first-order gradients, and say so where a second order is asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

Backward = TypeVar("Backward", bound=Callable[..., Any])


def first_order(backward: Backward) -> Backward:
    """A backward pass that refuses ``create_graph=True``.

    What kernels compute, and statistics that are taken for constants, have no graph of their own, so gradients of
    gradients would silently be wrong. (torch's ``once_differentiable`` notices some of them only: where the gradient
    from above is a constant, or ``allow_unused`` is set, it is silent.)

    Raises:
        RuntimeError: when it runs, and gradients of its gradients may be asked for.
    """

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled():
            name = type(ctx).__name__.removeprefix("_").removesuffix("Backward")
            raise RuntimeError(f"{name} has no gradients of gradients; expected a backward pass without create_graph")
        return backward(ctx, *grads)

    return cast("Backward", checked)
