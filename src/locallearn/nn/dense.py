"""Dense 3x3 convolutions and their gradients: our own or matrix products where oneDNN's are slow (docs/speed.md).

Kernels of another side are torch's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from locallearn.nn.native import conv as native

COLUMNS = 32
"""Channels from which on a matrix product makes a weight's gradient faster in bf16 on the CPU; with fewer ours is."""

ROWS = 512
"""Outputs from which on one computes the convolution itself faster."""

NATIVE = 32
"""Channels up to which our own kernel computes it faster than either, but for processors that multiply tiles."""


def forward(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """A dense convolution with padding of half its kernel: [B, C, H, W], [O, C, k, k] -> [B, O, H', W']."""
    if weight.shape[-1] != 3:
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
    sizes = x.shape[1], len(weight)
    narrow = x.shape[1] <= NATIVE and native.fits(x, *sizes, 1) and not native.behind(x, x.shape[1])
    if narrow or native.ahead(x, *sizes):
        return native.convolution(x, weight, stride, 1)
    if _in_bf16(x) and len(weight) >= ROWS:
        return product(x, weight, stride)
    return F.conv2d(x, weight, stride=stride, padding=1)


def weight_gradient(grad: Tensor, x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """The gradient of its weight, from that of its output."""
    if weight.shape[-1] != 3:
        return backward(grad, x, weight, stride, 1, (False, True, False))[1]
    sizes, as_product = (x.shape[1], len(weight)), _in_bf16(x) and x.shape[1] >= COLUMNS
    narrow = _in_bf16(x) and not as_product and native.fits_weight(x, *sizes, 1)
    narrow = narrow and not native.behind(x, x.shape[1])
    if narrow or native.ahead(x, *sizes):
        return native.weight_gradient(grad, x, stride, 1).to(weight.dtype)
    if as_product:
        return product_gradient(grad, x, stride)
    return backward(grad, x, weight, stride, 1, (False, True, False))[1]


def _in_bf16(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.bfloat16


def product(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """``forward`` as a matrix product."""
    height, width = ((side - 1) // stride + 1 for side in x.shape[2:])
    rows = weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
    return (_windows(x, stride, height, width) @ rows.t()).view(len(x), height, width, -1).permute(0, 3, 1, 2)


def product_gradient(grad: Tensor, x: Tensor, stride: int) -> Tensor:
    """``weight_gradient`` as a matrix product."""
    seen = _windows(x, stride, *grad.shape[2:])
    made = grad.permute(0, 2, 3, 1).reshape(len(seen), -1)
    return (made.t() @ seen).view(-1, 3, 3, x.shape[1]).permute(0, 3, 1, 2)


def _windows(x: Tensor, stride: int, height: int, width: int) -> Tensor:
    """What every output sees, [B, C, H, W] -> [B H' W', 9 C]."""
    padded_BHWC = F.pad(x, (1, 1, 1, 1)).permute(0, 2, 3, 1).contiguous()
    b, h, w, c = padded_BHWC.stride()
    shape = (len(x), height, width, 3, 3, x.shape[1])
    return padded_BHWC.as_strided(shape, (b, stride * h, stride * w, h, w, c)).reshape(-1, 9 * x.shape[1])


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: int, groups: int, mask: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a convolution's input, weight and bias, as far as ``mask`` asks for them."""
    pad = weight.shape[-1] // 2
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, (stride, stride), (pad, pad), (1, 1), False, (0, 0), groups, mask
    )
