"""Seeds and counts as whole numbers. The command line asks this before anything that takes time to import."""

import numbers
from typing import Any

from ggm_image.errors import UserError


def check_seed(seed: object) -> int:
    """A seed as an int.

    Raises:
        UserError: it is no whole number; a bool is none.
    """
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise UserError("a seed must be a whole number", f"got {seed!r}", "use for example 0")
    return int(seed)


def check_count(count: Any, what: str = "the number of images", *, least: int = 0, most: int = 1 << 62) -> int:
    """A count as an int.

    Raises:
        UserError: it is no whole number, or beyond ``least`` and ``most``.
    """
    if isinstance(count, bool) or not isinstance(count, numbers.Integral):
        raise UserError(f"{what} must be a whole number", f"got {count!r}", "use for example 4")
    found = int(count)
    if found < least:
        raise UserError(f"{what} must be at least {least}", f"got {count}", f"use {least} or more")
    if found > most:
        raise UserError(
            f"{what} must be at most {most:,}", f"got {count}", "do it in several runs, each with its own seed"
        )
    return found
