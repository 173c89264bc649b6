"""Pixels to a square of the right size, and to and from what networks take."""

from typing import Any

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from ggm_image.image.io import from_pil, to_pil

PREPROCESSING: dict[str, Any] = {
    "version": 2,
    "colour": "8-bit RGB; orientation applied; transparency on white; 16 bits scaled by 1/257",
    "crop": "centre square of the shorter side",
    "resize": "bicubic, antialiased",
}
"""What `open_image` and `preprocess` do; saved in every token cache. Raise the version with any change."""


def preprocess(image: UInt8[Tensor, "3 h w"], size: int) -> UInt8[Tensor, "3 size size"]:
    """The centre square, resized to ``size`` with antialiased bicubic; untouched if it fits already.

    Cropping first equals resizing the shorter side and cropping then, but for the filter's reach over
    the crop's edge, and a 1 x 10,000 image costs nothing. Pillow's fixed-point arithmetic gives the
    same bytes on every machine.
    """
    height, width = image.shape[-2:]
    if height == width == size:
        return image
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = image[:, top : top + side, left : left + side]
    if side == size:
        return square.contiguous()
    return from_pil(to_pil(square).resize((size, size), Image.Resampling.BICUBIC))


def to_model(images: UInt8[Tensor, "*n 3 h w"]) -> Float[Tensor, "*n 3 h w"]:
    """Pixels in [0, 255] to floats in [-1, 1]."""
    return images.to(torch.float32) / 127.5 - 1


def to_uint8(images: Float[Tensor, "*n 3 h w"]) -> UInt8[Tensor, "*n 3 h w"]:
    """Floats in [-1, 1] to the nearest pixels in [0, 255]; what lies outside is clamped."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
