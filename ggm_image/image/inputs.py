"""Accepted image inputs: a path, the bytes of a file, an open file, a Pillow image, an array or a tensor."""

import os
from collections.abc import Iterable
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.image.io import open_pil, rgb_pixels

ImageLike = Image.Image | str | os.PathLike[str] | bytes | bytearray | IO[bytes] | np.ndarray | Tensor


def open_single_image(source: ImageLike, what: str = "image") -> Image.Image:
    """An image in its own mode, turned as EXIF says; ``what`` is its name in an error.

    Args:
        source: a path, the bytes of a file, a file opened for reading in binary, a Pillow image, or pixels: an array
            (h, w), (h, w, c) or (c, h, w) or a tensor (h, w), (c, h, w) or (h, w, c) of uint8 with c = 1 to 4 channels
            (grey, grey and alpha, RGB, RGBA), or of uint16 (h, w).
    """
    if isinstance(source, np.ndarray | Tensor):
        return image_of_array(source, what)
    return open_pil(source, what=what, single=True)


def image_of_array(pixels: np.ndarray | Tensor, what: str = "image") -> Image.Image:
    """Pixels as a Pillow image, see `open_single_image`."""
    channels_first = isinstance(pixels, Tensor)
    values = pixels.detach().cpu().numpy() if isinstance(pixels, Tensor) else pixels
    got = f"{values.dtype} {tuple(values.shape)}"
    if values.ndim == 4 and len(values) == 1:
        values = values[0]
    if values.ndim == 3:
        first, last = values.shape[0] in (1, 2, 3, 4), values.shape[2] in (1, 2, 3, 4)
        if first and (channels_first or not last):
            values = values.transpose(1, 2, 0)
        values = values[..., 0] if values.shape[2] == 1 else values
    fits = values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (2, 3, 4))
    if (
        not fits
        or not values.size
        or not (values.dtype == np.uint8 or (values.dtype == np.uint16 and values.ndim == 2))
    ):
        fix = "give uint8 in [0, 255]; multiply values in [0, 1] by 255 and round"
        raise UserError(f"{what} must be uint8 pixels (h, w), (h, w, 3) or (3, h, w)", got, fix)
    return Image.fromarray(np.ascontiguousarray(values))


def open_rgb(source: ImageLike, what: str = "image") -> UInt8[Tensor, "3 h w"]:
    """An image as 8-bit RGB, by the rules of `ggm_image.image.io`; arguments as in `open_single_image`."""
    return rgb_pixels(open_single_image(source, what))


def pixel_batch(images: ImageLike | Iterable[ImageLike]) -> UInt8[Tensor, "n 3 h w"]:
    """One image, or several of one size, as 8-bit RGB.

    Args:
        images: see `open_single_image`; an array or tensor of four dimensions holds several.
    """
    several = isinstance(images, np.ndarray | Tensor) and images.ndim == 4
    one = isinstance(images, Image.Image | str | os.PathLike | bytes | bytearray | np.ndarray | Tensor)
    listed: Any = images if several or not (one or hasattr(images, "read")) else [images]
    found = [open_rgb(image) for image in listed]
    if not found:
        raise UserError("there must be at least one image", "an empty list", "give one or more")
    if len(sizes := {tuple(image.shape[1:]) for image in found}) > 1:
        got = " and ".join(f"{width} x {height}" for height, width in sorted(sizes)[:2])
        raise UserError("images of one batch must be of one size", got, "resize them, or encode them one by one")
    return torch.stack(found)
