"""Images of any size: what is added around them, the windows that a model paints, and the seam between old and new.

A model has one grid that it was trained on. A hole is therefore painted in windows of that grid's size in pixels, each
with known pixels around the hole; a hole too large for one window is tiled, and each tile sees what the ones before
it painted.

Legend: ``h w`` pixels of the image. Everything here is a function of pixels; no model.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from PIL import Image

from ggm_image.errors import UserError
from ggm_image.image.extension import Extension


def extend(
    image: Image.Image, mask: Bool[np.ndarray, "h w"], by: Extension
) -> tuple[Image.Image, Bool[np.ndarray, "height width"]]:
    """A larger image whose new part is hole and repeats the edge; its old pixels stay as they are."""
    around = (by.top, by.bottom), (by.left, by.right)
    pixels = np.asarray(image)
    larger = Image.fromarray(np.pad(pixels, (*around, (0, 0))[: pixels.ndim], mode="edge"))
    larger.info = dict(image.info)
    return larger, np.pad(mask, around, constant_values=True)


def place_under(size: tuple[int, int], mask: Bool[np.ndarray, "h w"]) -> Extension | None:
    """Where an image lies under a larger mask: over the mask's black part, or in the middle of an all-white mask.

    Returns:
        What is to be added around the image to give it the mask's size; None where the mask is not larger, or
        its black part does not fit under the image.
    """
    width, height = size
    spare_y, spare_x = mask.shape[0] - height, mask.shape[1] - width
    if spare_y < 0 or spare_x < 0:
        return None
    rows, columns = np.nonzero(~mask.all(1))[0], np.nonzero(~mask.all(0))[0]
    if not len(rows):
        return None
    top = int(rows[0]) if rows[-1] - rows[0] + 1 == height else spare_y // 2
    left = int(columns[0]) if columns[-1] - columns[0] + 1 == width else spare_x // 2
    if rows[0] < top or rows[-1] >= top + height or columns[0] < left or columns[-1] >= left + width:
        return None
    return Extension(left=left, top=top, right=spare_x - left, bottom=spare_y - top)


@dataclass(frozen=True)
class Window:
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)

    def meets(self, other: "Window") -> bool:
        """Whether two windows of one size overlap."""
        return abs(self.top - other.top) < self.height and abs(self.left - other.left) < self.width


def window_side(side: int, native: int, cell: int) -> int:
    """Pixels of a window along one axis: the model's, or the largest multiple of the cell in a smaller image."""
    if side < cell:
        raise UserError(f"an image needs at least {cell} pixels a side", f"got {side}", "enlarge it")
    return min(native, side // cell * cell)


def spans(low: int, high: int, side: int, window: int, overlap: int, step: int = 1) -> list[int]:
    """Starts of the fewest windows that cover [low, high) of [0, side), evenly spread.

    Args:
        window: length of each.
        overlap: of neighbours, at least.
        step: starts are multiples of it, if ``low``, ``high`` and ``window`` are.
    """
    if high - low <= window:
        return [min(max((low + high - window) // 2, 0), side - window)]
    count = math.ceil((high - low - overlap) / (window - overlap))
    last = high - window
    return sorted({round((low + (last - low) * k / (count - 1)) / step) * step for k in range(count)})


def plan_windows(
    mask: Bool[np.ndarray, "h w"], native: tuple[int, int], cell: int, context: int | None = None, step: int = 1
) -> list[Window]:
    """The windows in which a hole is filled, in order.

    Next is always the window with the most known pixels among those that still have unknown ones. Every pixel of the
    hole lies in one of them. Each window sees what the windows before it filled.

    Args:
        mask: True where the image is to be inpainted; at least one pixel.
        native: height and width in pixels of the model's own images.
        cell: pixels per side of a token's cell.
        context: known pixels that a window should see on each side of the hole; a quarter of the window by default.
        step: windows start at multiples of it.
    """
    if context is not None and not 0 <= 2 * context < min(native):
        fix = f"choose at most {(min(native) - 1) // 2}"
        raise UserError(f"context must leave room in the model's {min(native)} pixels", context, fix)
    sides = [window_side(side, own, cell) for side, own in zip(mask.shape, native, strict=True)]
    starts = []
    for axis, (side, window) in enumerate(zip(mask.shape, sides, strict=True)):
        margin = window // 4 if context is None else min(context, (window - 1) // 2)
        inside = np.nonzero(mask.any(1 - axis))[0]
        low, high = max(0, int(inside[0]) - margin), min(side, int(inside[-1]) + 1 + margin)
        starts.append(spans(low, high, side, window, min(margin, window // 2), step))
    windows = [Window(top, left, sides[0], sides[1]) for top in starts[0] for left in starts[1]]
    missing, plan = mask.copy(), []
    left = {w: int(missing[w.slices].sum()) for w in windows}
    while left := {w: count for w, count in left.items() if count}:
        plan.append(min(left, key=left.__getitem__))
        missing[plan[-1].slices] = False
        for other in left:
            if other.meets(plan[-1]):
                left[other] = int(missing[other.slices].sum())
    return plan
