"""One rule for what is a seed, on the command line and in Python."""

import operator
from typing import Any

from ggm_image.errors import UserError


def check_seed(seed: Any, *, least: int | None = None) -> int:
    """The seed as an ``int``.

    Args:
        seed: any integer, NumPy's included; a bool or a float is a mistake, even where its value is whole.
        least: smallest seed allowed; any integer by default.

    Raises:
        UserError: it is no integer, or too small.
    """
    what = "seed must be an integer" if least is None else f"seed must be an integer of at least {least}"
    try:
        if isinstance(seed, bool) or type(seed).__name__ in ("bool", "bool_"):
            raise TypeError
        number = operator.index(seed)
    except TypeError:
        raise UserError(what, f"got {seed!r}", "use a whole number, e.g. 0") from None
    if least is not None and number < least:
        raise UserError(what, f"got {seed!r}", "use a whole number, e.g. 0")
    return number
