"""What is missing in a text: its gaps, and the windows of a row's length that fill them."""

import re
from dataclasses import dataclass

import numpy as np

from ggm_image.errors import UserError
from ggm_image.sampler.settings import check_count

LONGEST_TEXT = 1 << 20
"""Tokens of one text at most: each of its windows takes tens of network calls."""
MASK = "_"
LEAST_MASKS = 4
"""How many of the default mask character in a row are a gap; fewer are text, as in ``snake_case``."""


@dataclass(frozen=True)
class Gap:
    """What is missing in a text.

    Attributes:
        characters: of its mark.
        tokens: that it gets, where that is given; 0 where not.
    """

    characters: int
    tokens: int = 0


def split_gaps(text: str | bytes, *, length: int | None = None, mask: str | bytes | None = None) -> list[bytes | Gap]:
    """The known bytes and the gaps of a text in order, at least one gap.

    Args:
        text: a string is encoded as UTF-8.
        length: tokens of every gap; by default not given.
        mask: one character, of which every run is a gap; by default runs of at least four ``_``.

    Raises:
        UserError: no gap, a mask that is not one character, or a length that is not positive.
    """
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else bytes(text)
    given = mask is not None
    marker = MASK if mask is None else mask.decode("utf-8", "replace") if isinstance(mask, bytes) else mask
    if len(marker) != 1:
        raise UserError("the mask must be one character", repr(marker), "use for example #")
    if length is not None:
        check_count(length, "the length of a gap", least=1, most=LONGEST_TEXT)
    code = re.escape(marker.encode("utf-8", "surrogateescape"))
    pattern = re.compile(b"(?:" + code + b"){%d,}" % (1 if given else LEAST_MASKS))
    parts: list[bytes | Gap] = []
    place = 0
    for found in pattern.finditer(data):
        size = (found.end() - found.start()) // len(marker.encode("utf-8", "surrogateescape"))
        parts += [data[place : found.start()], Gap(size, length or 0)]
        place = found.end()
    if not parts:
        shown = marker if given else MASK * LEAST_MASKS
        raise UserError(
            f"text must have a gap: {shown} where something is missing",
            data[:80].decode("utf-8", "replace"),
            "mark what is missing, or name another mask character",
        )
    return [part for part in (*parts, data[place:]) if part]


def plan_windows(unknown: np.ndarray, length: int) -> list[tuple[int, int, int]]:
    """Windows of at most ``length`` tokens that fill all unknown ones from left to right.

    A window starts a quarter of its length before the first token that is still unknown. What it samples in its last
    quarter is not kept, for lack of what comes behind it, unless the text ends there.

    Returns:
        Of each window its start, its end, and the end of what is kept.
    """
    total, done = len(unknown), 0
    places = np.flatnonzero(unknown)
    windows = []
    while len(left := places[places >= done]):
        start = int(min(max(left[0] - length // 4, 0), max(0, total - length)))
        end = min(start + length, total)
        done = end if end == total else max(end - length // 4, int(left[0]) + 1)
        windows.append((start, end, done))
    return windows
