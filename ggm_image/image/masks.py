"""Inpainting: from a mask to unknown tokens, and from a sampled image back to the input's pixels.

    image, hole = load_mask("photo.png", "mask.png")    # hole: True where the image is inpainted
    unknown = token_mask(hole, cell=4)                    # a token is unknown if ANY pixel of its cell is
    known = known_tokens(tokens, unknown)                 # what the sampler keeps; -1 where it samples
    result = composite(image, sampled, hole)              # pixels outside the hole as they were, bit for bit

Everything here is a function of pixels and tokens; no model. Legend: ``h w`` pixels, ``rows columns`` cells
of the token grid, ``l`` = rows * columns sites.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int, Int64, UInt8
from PIL import Image
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.image.extension import Extension
from ggm_image.image.inputs import ImageLike, open_single_image
from ggm_image.image.io import to_storable_mode
from ggm_image.image.mask_conventions import THRESHOLD, MaskLike, read_mask
from ggm_image.image.windows import extend, place_under
from ggm_image.runtime.streams import say


def load_mask(
    image: ImageLike,
    mask: MaskLike | None = None,
    *,
    extend_by: Extension | None = None,
    fit: bool = False,
    mask_index: int | None = None,
) -> tuple[Image.Image, Bool[np.ndarray, "h w"]]:
    """Open an image and find its hole.

    Args:
        image: see `open_single_image`. EXIF orientation is applied.
        mask: white where to paint, or by another convention of `ggm_image.image.mask_conventions`, which is then said
            on stderr. It has the image's size; a larger one paints beyond the image, which lies under the mask's
            black part or in the middle (`place_under`). None: the hole is where the image itself is transparent
            (alpha under 128).
        extend_by: pixels to add around the image; they belong to the hole.
        fit: stretch a mask of another size to the image's. Any white in what becomes one pixel makes it white.
        mask_index: paint where the mask's palette index or grey value is this.

    Returns:
        The image in one of the modes L, LA, RGB, RGBA, I;16, as `composite` will give it back, and the
        hole (h, w), True where it is to be inpainted. The hole is empty where the mask is black everywhere.
    """
    opened = to_storable_mode(open_single_image(image))
    if mask is None:
        hole = _transparent(opened, needed=extend_by is None)
    else:
        hole, how = read_mask(mask, index=mask_index)
        if how:
            say(f"mask: {how}")
        if hole.shape != (opened.height, opened.width) and fit:
            hole = _stretched(hole, opened.size)
        if hole.shape != (opened.height, opened.width):
            under = place_under(opened.size, hole)
            if under is None:
                raise UserError(
                    "image and mask must be of one size",
                    f"image {opened.width} x {opened.height}, mask {hole.shape[1]} x {hole.shape[0]}",
                    "resize the mask, or let --fit stretch it",
                )
            opened, _ = extend(opened, np.zeros((opened.height, opened.width), dtype=bool), under)
            # What the mask adds around the image has no known pixels, so it belongs to the hole.
            beyond = np.ones(hole.shape, dtype=bool)
            beyond[under.top : hole.shape[0] - under.bottom, under.left : hole.shape[1] - under.right] = False
            hole = hole | beyond
    return (opened, hole) if extend_by is None else extend(opened, hole, extend_by)


def _transparent(image: Image.Image, *, needed: bool) -> np.ndarray:
    """Where the image is transparent; if a hole is ``needed``, there must be one."""
    if image.mode not in ("LA", "RGBA"):
        if not needed:
            return np.zeros((image.height, image.width), dtype=bool)
        raise UserError(
            "a mask is needed",
            f"the image has no transparent parts: mode {image.mode}",
            "give a mask that is white where to paint",
        )
    mask = np.asarray(image.getchannel("A")) < THRESHOLD
    if needed and not mask.any():
        raise UserError(
            "a mask is needed", "the image is opaque everywhere", "give a mask that is white where to paint"
        )
    return mask


def _stretched(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A mask of another size: a pixel is white if any white falls into it."""
    shares = Image.fromarray((mask * np.float32(1)).astype(np.float32)).resize(size, Image.Resampling.BOX)
    return np.asarray(shares) > 0


def token_mask(mask: Bool[np.ndarray, "h w"], cell: int, *, dilate: int = 0) -> Bool[Tensor, "rows columns"]:
    """Which tokens are unknown: those with ANY pixel of their cell in the hole, after dilating it.

    Args:
        mask: True where pixels are unknown.
        cell: pixels per side of a token's cell.
        dilate: pixels by which the hole grows in all eight directions first, so that tokens whose
            neighbourhood was unknown to the encoder can be resampled too.

    Returns:
        (h / cell, w / cell), True where the token is to be sampled.
    """
    h, w = mask.shape
    if h % cell or w % cell or not h or not w:
        raise UserError(
            f"sides must be multiples of the tokenizer's {cell} pixels",
            f"{w} x {h}",
            f"crop or resize to {max(cell, w // cell * cell)} x {max(cell, h // cell * cell)}",
        )
    if dilate < 0:
        raise UserError("dilation must be at least 0 pixels", dilate, "use --dilate 0")
    unknown = torch.from_numpy(mask)[None, None].to(torch.float32)
    if dilate:
        # Two passes of one row and one column make the square; further than the image changes nothing.
        reach = min(dilate, max(h, w))
        unknown = F.max_pool2d(unknown, (2 * reach + 1, 1), stride=1, padding=(reach, 0))
        unknown = F.max_pool2d(unknown, (1, 2 * reach + 1), stride=1, padding=(0, reach))
    return F.max_pool2d(unknown, cell)[0, 0] > 0


def known_tokens(tokens: Int[Tensor, "*grid"], unknown: Bool[Tensor, "rows columns"]) -> Int64[Tensor, " l"]:
    """Tokens in row-major order, -1 where they are to be sampled: what the sampler takes as ``known``."""
    if tokens.numel() != unknown.numel() or (tokens.ndim == 2 and tokens.shape != unknown.shape):
        raise UserError(
            "tokens and their mask must be of one grid",
            f"{tuple(tokens.shape)} and {tuple(unknown.shape)}",
            "use the tokenizer's own cell for the mask",
        )
    return tokens.flatten().to(torch.int64).masked_fill(unknown.flatten().to(tokens.device), -1)


def fill_unknown(image: UInt8[Tensor, "*n 3 h w"], mask: Bool[np.ndarray, "h w"]) -> UInt8[Tensor, "*n 3 h w"]:
    """The image with every pixel of the hole replaced by the nearest known one; grey if none is known.

    What lay under the mask must not leak into the tokens beside it through the encoder's receptive field, and
    a made-up colour would put a hard edge there.
    """
    from scipy import ndimage  # late: samples need none of it

    if mask.all():
        return torch.full_like(image, 128)
    rows, columns = ndimage.distance_transform_edt(mask, return_distances=False, return_indices=True)
    return image[..., torch.from_numpy(rows).long(), torch.from_numpy(columns).long()]
