"""The copies of each image that a token cache holds: the original, mirrored, shifted by a few pixels, or both."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, islice

import torch
from jaxtyping import UInt8
from torch import Tensor

from ggm_image.errors import UserError

MOST_SHIFTS = 1 << 16  # a damaged manifest must not ask for a list that does not fit in memory


@dataclass(frozen=True)
class Copy:
    """One copy of an image: mirrored first, then shifted."""

    mirrored: bool = False
    dy: int = 0
    dx: int = 0

    def apply(self, image: UInt8[Tensor, "*n 3 h w"]) -> UInt8[Tensor, "*n 3 h w"]:
        """The copy of an image; what the shift uncovers is filled by reflection at the border.

        Args:
            image: with ``abs(dy) < h`` and ``abs(dx) < w``.
        """
        if self.mirrored:
            image = image.flip(-1)
        for dim, offset in ((-2, self.dy), (-1, self.dx)):
            if offset:
                last = image.shape[dim] - 1
                place = (torch.arange(last + 1, device=image.device) - offset).abs()
                image = image.index_select(dim, last - (last - place).abs())
        return image


ORIGINAL = Copy()


def most_shifts(size: int) -> int:
    """How many distinct offsets of at most ``max(1, round(size / 16))`` pixels images of ``size`` pixels have."""
    size = min(max(1, size), 1 << 12)  # more than enough for MOST_SHIFTS; a damaged manifest has any number
    most = min(max(1, round(size / 16)), size - 1)
    return min(MOST_SHIFTS, (2 * most + 1) ** 2 - 1)


def check_shifts(shifts: int, size: int) -> None:
    """Raise UserError unless images of ``size`` pixels have ``shifts`` distinct offsets."""
    most = most_shifts(size)
    if not 0 <= shifts <= most:
        what = f"shifts must lie in [0, {most}] for images of {size} pixels"
        raise UserError(what, shifts, f"use --shifts {min(max(0, shifts), most)}")


def shift_offsets() -> Iterator[tuple[int, int]]:
    """The offsets (dy, dx) of the shifted copies in their order: one endless list for all images and sizes.

    Ring r has the 8 r offsets with ``max(abs(dy), abs(dx)) == r``; rings come in the order 1, 2, 3, ... In a ring the
    offsets are ordered by distance, then by dy, and each is followed by its opposite, so that a few shifts have no
    common direction: (0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1), (0, 2), (0, -2), (2, 0), ...
    """
    for ring in count(1):
        half = [
            (dy, dx)
            for dy in range(ring + 1)
            for dx in range(-ring, ring + 1)
            if max(dy, abs(dx)) == ring and (dy, dx) > (0, 0)
        ]
        for dy, dx in sorted(half, key=lambda offset: (offset[0] ** 2 + offset[1] ** 2, offset[0], -offset[1])):
            yield dy, dx
            yield -dy, -dx


@lru_cache(maxsize=8)
def copies_of(flip: bool, shifts: int) -> tuple[Copy, ...]:
    """The copies of each image in the order of a cache's rows: for each of them come all the images.

    Args:
        flip: every copy comes mirrored too, right after it.
        shifts: how many shifted copies follow the original; the k-th of every image has offset k of `shift_offsets`.

    Returns:
        ``(1 + shifts) * (2 if flip else 1)`` copies, the original first.
    """
    offsets = [(0, 0), *islice(shift_offsets(), shifts)]
    return tuple(Copy(mirrored, dy, dx) for dy, dx in offsets for mirrored in ((False, True) if flip else (False,)))


def order_of(flip: bool, shifts: int) -> str:
    """The order of the copies in words, for a manifest; empty where there are only originals."""
    kinds = "all originals, then all mirrored copies" if flip else "all originals" if shifts else ""
    return f"{kinds}, then the same for each shift" if shifts else kinds
