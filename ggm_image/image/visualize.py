"""Images to look at: grids and heat maps."""

import math

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor


def grid_size(n: int, height: int, width: int, columns: int | None = None, *, gap: int = 0) -> tuple[int, int]:
    """Height and width of the `image_grid` of ``n`` images of ``height`` x ``width`` pixels."""
    columns = min(n, columns or math.ceil(math.sqrt(n)))
    rows = math.ceil(n / columns)
    return rows * (height + gap) - gap, columns * (width + gap) - gap


def image_grid(
    images: UInt8[Tensor, "n 3 h w"], columns: int | None = None, *, gap: int = 0
) -> UInt8[Tensor, "3 height width"]:
    """Images side by side, row by row; empty cells and gaps are white.

    Args:
        columns: images a row; as near to a square as possible by default.
    """
    n, _, h, w = images.shape
    sheet = images.new_full((3, *grid_size(n, h, w, columns, gap=gap)), 255)
    columns = min(n, columns or math.ceil(math.sqrt(n)))
    for k, image in enumerate(images):
        top, left = k // columns * (h + gap), k % columns * (w + gap)
        sheet[:, top : top + h, left : left + w] = image
    return sheet


SHOWN_SIDE = 256
"""Images are enlarged by a whole factor until their shorter side has so many pixels."""
MOST_SHOWN = 4096
"""Images whose longer side has more pixels are made smaller."""
NOISE_COLOUR = (230, 30, 30)


def heat_map(image: Image.Image, probability: Float[Tensor, "rows columns"], cell: int) -> Image.Image:
    """The image, and beside it the image in grey under red that is the stronger the less a token looks like signal.

    Args:
        image: of any mode; what lies beyond the last whole cell at its right and lower edge is left out.
        cell: pixels per side of a token's cell.
    """
    original = image.convert("RGB").crop((0, 0, probability.shape[1] * cell, probability.shape[0] * cell))
    scale = max(1, -(-SHOWN_SIDE // min(original.size)))
    size = original.width * scale, original.height * scale
    if max(size) > MOST_SHOWN:
        original.thumbnail((MOST_SHOWN, MOST_SHOWN))
        size = original.size
    else:
        original = original.resize(size, Image.Resampling.NEAREST)
    opacity = ((1 - probability).clamp(0, 1) * 217).round().to(torch.uint8).cpu().numpy()  # 85 % at most
    over = Image.fromarray(opacity).resize(size, Image.Resampling.NEAREST)
    tinted = Image.composite(Image.new("RGB", size, NOISE_COLOUR), original.convert("L").convert("RGB"), over)
    sheet = Image.new("RGB", (2 * size[0] + 8, size[1]), "white")
    sheet.paste(original, (0, 0))
    sheet.paste(tinted, (size[0] + 8, 0))
    return sheet
