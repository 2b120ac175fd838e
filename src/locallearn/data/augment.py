"""Random changes of a batch of images, drawn for every image on its own."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from locallearn import seeding
from locallearn.config import AugmentConfig
from locallearn.errors import UsageError


def augment(images: Tensor, config: AugmentConfig, seed: int) -> Tensor:
    """Crop, flip, change colours and turn grey, as ``config`` says.

    Everything is drawn on the CPU from ``seed`` alone, so that equal seeds give equal draws on every device; every
    kind of change has draws of its own, so turning one on leaves the others as they were. torch's global generator
    is neither used nor changed, and nothing waits for the device.

    Args:
        images: uint8 [B, C, H, W], or float in [0, 1]; channels-last memory is the fastest.
        config: complete settings, see ``locallearn.data.datasets.resolve_augment``.
        seed: seed of this batch.

    Returns:
        float [B, C, H, W] in [0, 1], in channels-last memory; float images may come back as they are.

    Raises:
        UsageError: ``config`` leaves the choice of something to the data set.
    """
    if config.crop_padding is None or config.padding_mode is None or config.flip is None:
        raise UsageError("augment: crop_padding, padding_mode and flip are needed; see resolve_augment")
    pixels_BCHW = images.contiguous(memory_format=torch.channels_last)
    if config.resized_crop is not None:
        pixels_BCHW = _resized_crop(_scaled(pixels_BCHW), config, seed)
    elif config.crop_padding > 0 or config.flip > 0:
        pixels_BCHW = _crop_flip(pixels_BCHW, config.crop_padding, config.padding_mode, config.flip, seed)
    pixels_BCHW = _scaled(pixels_BCHW)
    if config.jitter > 0:
        change = _jitter(config, seed)
        pixels_BCHW = _change_some(pixels_BCHW, config.jitter, seeding.generator(seed, "jitter"), change)
    if config.grey > 0:
        pixels_BCHW = _change_some(pixels_BCHW, config.grey, seeding.generator(seed, "grey"), _grey)
    return pixels_BCHW


def _scaled(images: Tensor) -> Tensor:
    """Pixels in [0, 1]."""
    return images if images.is_floating_point() else images.float().div_(255)


def crop_boxes(config: AugmentConfig, count: int, height: int | Tensor, width: int | Tensor, seed: int) -> Tensor:
    """Where ``augment`` cuts ``count`` images with this seed, as torchvision's RandomResizedCrop draws it.

    Ten parts are drawn for each image, of an area uniform in ``resized_crop`` and an aspect ratio log-uniform between
    3:4 and 4:3, and the first that fits is taken; where none fits, the whole image. Height and width are one number,
    or int64 [count], one for each image [pixels].

    Returns:
        int64 [count, 4], on the CPU: top, left, height and width [pixels]. The whole image without ``resized_crop``.
    """
    zero = torch.zeros(count, dtype=torch.int64)
    whole = torch.stack([zero, zero, zero + height, zero + width], 1)
    if config.resized_crop is None:
        return whole
    draw = seeding.generator(seed, "resized-crop")
    area = torch.empty(_ATTEMPTS, count).uniform_(*config.resized_crop, generator=draw) * (height * width)
    ratio = torch.empty(_ATTEMPTS, count).uniform_(-_LOG_RATIO, _LOG_RATIO, generator=draw).exp()
    w, h = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    place = torch.rand(2, _ATTEMPTS, count, generator=draw)
    top, left = (place[0] * (height - h + 1)).long(), (place[1] * (width - w + 1)).long()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.int().argmax(0)  # of equal values, the first one's place
    drawn = torch.stack([top, left, h, w], dim=-1)[first, torch.arange(count)]
    return torch.where(fits.any(0)[:, None], drawn, whole)


_ATTEMPTS = 10
_LOG_RATIO = math.log(4 / 3)


def _resized_crop(pixels_BCHW: Tensor, config: AugmentConfig, seed: int) -> Tensor:
    """Cut the boxes out, resize them to the whole image and flip, as one bilinear sampling.

    Positions are kept inside their box, so that nothing beyond its edge shows, as where a part is cut out first and
    resized then.
    """
    B, _, H, W = pixels_BCHW.shape
    boxes_B4 = crop_boxes(config, B, H, W, seed).float()
    flipped_B1 = torch.rand(B, 1, generator=seeding.generator(seed, "flip")) < (config.flip or 0.0)
    top, left, height, width = boxes_B4[:, :, None].unbind(1)
    y_BH = top + ((torch.arange(H) + 0.5) * height / H - 0.5).clamp(min=0).minimum(height - 1)
    x_BW = left + ((torch.arange(W) + 0.5) * width / W - 0.5).clamp(min=0).minimum(width - 1)
    x_BW = torch.where(flipped_B1, x_BW.flip(1), x_BW)
    # grid_sample counts from -1 at the first pixel to 1 at the last
    scaled = torch.cat([y_BH * (2 / max(H - 1, 1)) - 1, x_BW * (2 / max(W - 1, 1)) - 1], dim=1)
    y_BH, x_BW = scaled.to(pixels_BCHW.device, non_blocking=True).split([H, W], dim=1)
    grid_BHW2 = torch.stack([x_BW[:, None].expand(B, H, W), y_BH[..., None].expand(B, H, W)], dim=-1)
    cut = functional.grid_sample(pixels_BCHW, grid_BHW2, padding_mode="border", align_corners=True)
    return cut.clamp_(0, 1).contiguous(memory_format=torch.channels_last)


def _crop_flip(images_BCHW: Tensor, padding: int, mode: str, flip: float, seed: int) -> Tensor:
    """Pad, crop at a random place and flip, as one gather of whole pixels.

    Our own gather, for kornia's RandomCrop and RandomHorizontalFlip take 2.2 ms for 128 images of CIFAR (slicing;
    3.8 ms resampling) on one thread of a 2.6 GHz EPYC, this 0.5 ms, and both move pixels only.
    """
    B, C, H, W = images_BCHW.shape
    corner = torch.randint(0, 2 * padding + 1, (2, B), generator=seeding.generator(seed, "crop"))
    flipped = torch.rand(B, generator=seeding.generator(seed, "flip")) < flip
    drawn = torch.cat([corner, flipped[None]]).to(images_BCHW.device, non_blocking=True)
    top_B1, left_B1, flipped_B1 = drawn[0, :, None], drawn[1, :, None], drawn[2, :, None] == 1
    columns_W = torch.arange(W, device=drawn.device)
    rows_BH = torch.arange(H, device=drawn.device) + top_B1 - padding
    columns_BW = torch.where(flipped_B1, W - 1 - columns_W, columns_W) + left_B1 - padding
    # Pixels as rows of C values: a view, where the memory is channels-last.
    table = images_BCHW.permute(0, 2, 3, 1).reshape(-1, C)
    first_B11 = torch.arange(B, device=drawn.device)[:, None, None] * (H * W)
    index_BHW = first_B11 + mirror(rows_BH, H)[:, :, None] * W + mirror(columns_BW, W)[:, None, :]
    cropped = table.index_select(0, index_BHW.flatten()).view(B, H, W, C)
    if mode == "constant" and padding > 0:
        inside_BHW = inside(rows_BH, H)[:, :, None] & inside(columns_BW, W)[:, None, :]
        cropped.mul_(inside_BHW[..., None])
    return cropped.permute(0, 3, 1, 2)


def mirror(position: Tensor, size: int) -> Tensor:
    """Positions outside [0, size) reflected at the first and the last pixel, which are not repeated."""
    return size - 1 - (size - 1 - position.abs()).abs()


def inside(position: Tensor, size: int) -> Tensor:
    """Which positions are in the image."""
    return (position >= 0) & (position < size)


def _change_some(
    pixels: Tensor, probability: float, generator: torch.Generator, change: Callable[[Tensor], Tensor]
) -> Tensor:
    """Apply ``change`` to every image with a probability, and only there."""
    chosen = (torch.rand(len(pixels), generator=generator) < probability).nonzero().flatten()
    if len(chosen) == 0:
        return pixels
    chosen = chosen.to(pixels.device, non_blocking=True)
    # Of the two index_copy, only this one keeps channels-last memory.
    return pixels.clone().index_copy_(0, chosen, change(pixels[chosen]))


def _jitter(config: AugmentConfig, seed: int) -> Callable[[Tensor], Tensor]:
    """Brightness, contrast, saturation and hue, each with a factor of its own for every image.

    The order of the four is drawn once a batch, as kornia's and torchvision's ColorJitter do; kornia's functions
    are used rather than its ColorJitter, which draws from torch's global generator. Hue is our own: kornia's takes
    three times as long, and longer than everything else here together.
    """

    def change(pixels: Tensor) -> Tensor:
        from kornia import enhance  # slow to import, and not always needed

        generator = seeding.generator(seed, "colours")

        def uniform(low: float, high: float) -> Tensor:
            drawn = torch.empty(len(pixels)).uniform_(low, high, generator=generator)
            return drawn.to(pixels.device, non_blocking=True)

        steps = (
            (enhance.adjust_brightness_accumulative, uniform(1 - config.brightness, 1 + config.brightness)),
            (enhance.adjust_contrast_with_mean_subtraction, uniform(1 - config.contrast, 1 + config.contrast)),
            (enhance.adjust_saturation_with_gray_subtraction, uniform(1 - config.saturation, 1 + config.saturation)),
            (_turn_hue, uniform(-config.hue, config.hue)),
        )
        for step in torch.randperm(len(steps), generator=generator).tolist():
            adjust, factor = steps[step]
            pixels = adjust(pixels, factor)
        return pixels

    return change


def _turn_hue(pixels_B3HW: Tensor, turn_B: Tensor) -> Tensor:
    """Turn the hue of every image by a fraction of the colour circle; saturation and value (HSV) stay.

    Every channel is value - chroma * triangle(hue + offset), which needs neither HSV images nor cases for the six
    parts of the circle (Smith, 1978, in its branchless form).
    """
    value_B1HW = pixels_B3HW.amax(1, keepdim=True)
    chroma_B1HW = value_B1HW - pixels_B3HW.amin(1, keepdim=True)
    red, green, blue = pixels_B3HW.split(1, dim=1)
    scale = chroma_B1HW.clamp(min=1e-12).reciprocal_()
    hue_B1HW = torch.where(value_B1HW == green, (blue - red) * scale + 2, (red - green) * scale + 4)
    hue_B1HW = torch.where(value_B1HW == red, (green - blue) * scale, hue_B1HW)
    offset_131 = torch.tensor([5.0, 3.0, 1.0], device=pixels_B3HW.device).view(1, 3, 1, 1)
    place = hue_B1HW + (turn_B.view(-1, 1, 1, 1) * 6 + offset_131)
    place = place.sub_((place / 6).floor_().mul_(6))
    return value_B1HW - chroma_B1HW * torch.minimum(place, 4 - place).clamp_(0, 1)


def _grey(pixels: Tensor) -> Tensor:
    from kornia.color import rgb_to_grayscale

    return rgb_to_grayscale(pixels).expand_as(pixels)
