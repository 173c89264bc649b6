"""From coarse to fine: the resolutions at which a large hole is filled, one after the other.

A model knows images of its own size. A hole that is wide compared with them is filled first at a resolution at which
the hole and known pixels around it fit into one window of the model. Each finer scale follows the enlarged result, and
the last one is the image's own resolution.

Legend: ``h w`` pixels. Everything here is a function of pixels; no model.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, UInt8
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.image.windows import Window, plan_windows

Scales = int | Literal["auto"]
ONE_SCALE = 1.25
"""Reductions up to this are not worth a scale of their own."""


@dataclass(frozen=True)
class Scale:
    """One resolution of the crop around a hole.

    Attributes:
        factor: pixels of the image per pixel of this scale, >= 1.
        mask: (h, w) at this scale, True where pixels are sampled.
        windows: where the model samples, in turn; coordinates of this scale's crop.
    """

    factor: float
    mask: Bool[np.ndarray, "h w"]
    windows: list[Window]


@dataclass(frozen=True)
class InpaintingPlan:
    """Everything about an inpainting run that depends on the mask alone.

    Attributes:
        crop: the part of the image that is looked at, in its own pixels.
        width: of the hole where it is widest, in pixels; twice the largest distance to a known pixel.
        factor: reduction at which hole and context fit into one window; at most 1 for a hole that needs none.
    """

    crop: Window
    width: float
    factor: float
    scales: list[Scale]

    @property
    def windows(self) -> list[Window]:
        """The windows of the last scale, in the image's own coordinates."""
        top, left = self.crop.top, self.crop.left
        return [replace(w, top=w.top + top, left=w.left + left) for w in self.scales[-1].windows]

    @property
    def calls(self) -> int:
        """Windows over all scales."""
        return sum(len(scale.windows) for scale in self.scales)


def check_scales(scales: object) -> Scales:
    """Raise UserError unless it is "auto" or a whole number from 1 on."""
    if scales == "auto":
        return "auto"
    if isinstance(scales, int) and not isinstance(scales, bool) and scales >= 1:
        return scales
    raise UserError("scales must be auto or a whole number from 1 on", scales, "1 samples at full resolution only")


def plan_inpainting(
    mask: Bool[np.ndarray, "h w"],
    native: tuple[int, int],
    cell: int,
    *,
    context: int | None = None,
    scales: Scales = "auto",
) -> InpaintingPlan:
    """Crop, scales and windows for a hole.

    The reduction f of the first scale is the least at which the hole, where it is widest, takes the part of a window
    that the context leaves, and at most the one at which the image's shorter side is the model's. The others
    lie evenly between f and 1 on a logarithmic scale, by default at most a factor of 2 apart.

    Args:
        mask: True where pixels are to be sampled; at least one.
        native: height and width in pixels of the model's own images.
        cell: pixels per side of a token's cell.
        context: known pixels that a window should see on each side of the hole; a quarter of the window by default.
        scales: how many at most; "auto" for as many as needed.
    """
    check_scales(scales)
    windows = plan_windows(mask, native, cell, context)  # of the last scale; checks the context
    spans = [np.nonzero(mask.any(1 - axis))[0] for axis in (0, 1)]
    box = [(int(inside[0]), int(inside[-1]) + 1) for inside in spans]
    width = 2 * _depth(mask, box)
    room = min(own - 2 * (own // 4 if context is None else context) for own in native)
    largest = min(side / own for side, own in zip(mask.shape, native, strict=True))
    factor = min(width / room, max(1.0, largest))
    count = 1 if factor <= ONE_SCALE else 1 + math.ceil(math.log2(factor)) if scales == "auto" else scales
    factors = [factor ** (1 - k / (count - 1)) for k in range(count - 1)] + [1.0]
    crop = _crop(mask.shape, box, windows, native, factors[0], context)
    inside, plans = mask[crop.slices], []
    for reduction in factors[:-1]:
        size = (max(cell, round(crop.height / reduction)), max(cell, round(crop.width / reduction)))
        small = _known_share(~inside, size) < 0.5
        plans.append(Scale(reduction, small, plan_windows(small, native, cell, context) if small.any() else []))
    own = [replace(w, top=w.top - crop.top, left=w.left - crop.left) for w in windows]
    return InpaintingPlan(crop, width, factor, [*plans, Scale(1.0, inside, own)])


def _depth(mask: Bool[np.ndarray, "h w"], box: list[tuple[int, int]]) -> float:
    """The largest distance from a pixel of the hole to a known one, in pixels; infinite where none is known.

    One pixel around the hole's bounding box is enough: the nearest known pixel lies there or inside.
    """
    from scipy import ndimage  # late: samples need none of it

    part = mask[tuple(slice(max(0, low - 1), high + 1) for low, high in box)]
    return math.inf if part.all() else float(ndimage.distance_transform_edt(part).max())


def _crop(
    shape: tuple[int, ...],
    box: list[tuple[int, int]],
    windows: list[Window],
    native: tuple[int, int],
    factor: float,
    context: int | None,
) -> Window:
    """The hole with its context at the coarsest scale, at least one window of it, and all windows of the finest."""
    sides = []
    for axis, (low, high) in enumerate(box):
        margin = math.ceil(factor * (native[axis] // 4 if context is None else context))
        spare = max(0, math.ceil(factor * native[axis]) - (high - low + 2 * margin))
        start, stop = low - margin - spare // 2, high + margin + spare - spare // 2
        # a window at the border moves inwards
        shift = max(0, -start) - max(0, stop - shape[axis])
        own = [w.slices[axis] for w in windows]
        start = max(0, min(start + min(0, shift), *(w.start for w in own)))
        stop = min(shape[axis], max(stop + max(0, shift), *(w.stop for w in own)))
        sides.append((start, stop))
    (top, bottom), (left, right) = sides
    return Window(top, left, bottom - top, right - left)


def _known_share(known: Bool[np.ndarray, "h w"], size: tuple[int, int]) -> np.ndarray:
    """The share of known pixels in each pixel of a smaller image."""
    return F.adaptive_avg_pool2d(torch.from_numpy(known)[None].float(), size)[0].numpy()


def reduce_known(
    image: UInt8[Tensor, "3 h w"], mask: Bool[np.ndarray, "h w"], size: tuple[int, int]
) -> UInt8[Tensor, "3 height width"]:
    """A smaller image, each pixel the mean of the known ones that it covers; 0 where there are none."""
    known = torch.from_numpy(~mask)[None].float()
    share = F.adaptive_avg_pool2d(known, size)
    total = torch.cat([F.adaptive_avg_pool2d(channel[None] * known, size) for channel in image])
    return (total / share.clamp(min=1e-6)).round().clamp(0, 255).to(torch.uint8)


def enlarge(images: UInt8[Tensor, "n 3 h w"], size: tuple[int, int]) -> UInt8[Tensor, "n 3 height width"]:
    """Bicubic, image by image: the result for one does not depend on the others."""
    larger = [F.interpolate(x[None].float(), size, mode="bicubic", align_corners=False) for x in images]
    return torch.cat(larger).round().clamp(0, 255).to(torch.uint8)


def pyramid(
    image: UInt8[Tensor, "3 h w"], plan: InpaintingPlan
) -> Iterator[tuple[Scale, UInt8[Tensor, "3 height width"]]]:
    """The scales with the known pixels at each, from coarse to fine; ``image`` is the crop and the last of them."""
    for scale in plan.scales[:-1]:
        size = (scale.mask.shape[0], scale.mask.shape[1])
        yield scale, reduce_known(image, plan.scales[-1].mask, size)
    yield plan.scales[-1], image
