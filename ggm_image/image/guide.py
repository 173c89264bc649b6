"""A guide image: what samples are to follow, where it is opaque.

Legend: ``h w`` pixels of the model. Everything here is a function of pixels; no model.
"""

from fractions import Fraction

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.image.inputs import ImageLike, open_single_image
from ggm_image.image.io import from_pil, rgb_pixels, to_pil
from ggm_image.image.masks import fill_unknown
from ggm_image.runtime.streams import say


def load_guide(guide: ImageLike, size: tuple[int, int]) -> tuple[UInt8[Tensor, "3 h w"], Float[Tensor, "h w"]]:
    """A guide image at the model's size, and its opacity.

    The centre of the model's aspect ratio is kept, and resized with antialiased bicubic: a smaller guide is enlarged, a
    larger one reduced. Pixels that are transparent altogether take the colour of the nearest opaque one, so that no
    artificial edge is encoded.

    Args:
        guide: see `open_single_image`. Transparent parts guide nothing.
        size: height and width of the model's images.

    Returns:
        Pixels in [0, 255], and the opacity of each in [0, 1].
    """
    image, (height, width) = open_single_image(guide, "guide"), size
    box = _centre(image.size, Fraction(width, height))
    if box != (0, 0, *image.size):
        used = f"{box[2] - box[0]} x {box[3] - box[1]}"
        say(f"guide: only the centre is used, {used} of {image.width} x {image.height} pixels")
    if box[2] - box[0] > width:
        say(f"guide: reduced to {width} x {height} pixels: samples have the size of the model's images")
    if not image.has_transparency_data:
        return _resized(image.crop(box), size), torch.ones(height, width)
    # Pillow resizes colours in proportion to their opacity
    part = image.convert("RGBA").crop(box)
    if part.size != (width, height):
        part = part.resize((width, height), Image.Resampling.BICUBIC)
    alpha = np.array(part.getchannel("A"))
    if not alpha.any():
        raise UserError("the guide is transparent everywhere", f"{image.width} x {image.height} pixels", "paint on it")
    return fill_unknown(from_pil(part), alpha == 0), torch.from_numpy(alpha).float() / 255


def _centre(size: tuple[int, int], ratio: Fraction) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the largest part of a ratio of width to height in the middle."""
    width = max(1, min(size[0], int(size[1] * ratio)))
    height = max(1, min(size[1], int(size[0] / ratio)))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height


def _resized(image: Image.Image, size: tuple[int, int]) -> UInt8[Tensor, "3 h w"]:
    pixels = rgb_pixels(image)
    if tuple(pixels.shape[1:]) == size:
        return pixels
    return from_pil(to_pil(pixels).resize((size[1], size[0]), Image.Resampling.BICUBIC))
