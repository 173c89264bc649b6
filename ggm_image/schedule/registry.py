"""Level curves and site orders by name. A new one is one entry here; nothing in this file imports torch.

`Settings.curve`, `Settings.site_order` and the command line's ``--curve`` and ``--site-order`` take the names.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ggm_image.errors import UserError, suggest

# Each falls from 1 at x = 0 to 0 at x = 1, where x = s/S is the fraction of the sweeps done.
CURVES: dict[str, Callable[[float], float]] = {
    "sqrt": lambda x: math.sqrt(1 - x),
    "cosine": lambda x: math.cos(math.pi / 2 * x),
    "linear": lambda x: 1 - x,
}


@dataclass(frozen=True)
class SiteOrder:
    """An order in which a sweep visits all sites; a block is a run of it.

    Attributes:
        function: as ``module:name``, from (height, width, generator) to a permutation of the row-major sites, int64 on
            the CPU; imported when it is first used.
        spread: whether `Schedule.round_robin` exchanges sites between blocks where two sites of a block are neighbours.
    """

    function: str
    spread: bool = False

    def load(self) -> Callable[..., Any]:
        """Its function; imports the module."""
        module, _, name = self.function.partition(":")
        found: Callable[..., Any] = getattr(import_module(module), name)
        return found


ORDERS: dict[str, SiteOrder] = {
    "bayer": SiteOrder("ggm_image.schedule.orders:bayer", spread=True),
    "halton": SiteOrder("ggm_image.schedule.orders:halton", spread=True),
    "random": SiteOrder("ggm_image.schedule.orders:uniform"),
}


def find_order(name: object) -> SiteOrder:
    """The site order of a name; UserError with the nearest names, or all, if there is none."""
    if isinstance(name, str) and name in ORDERS:
        return ORDERS[name]
    raise _unknown("order", name, ORDERS)


def find_curve(name: object) -> Callable[[float], float]:
    """The level curve of a name; UserError with the nearest names, or all, if there is none."""
    if isinstance(name, str) and name in CURVES:
        return CURVES[name]
    raise _unknown("curve", name, CURVES)


def _unknown(what: str, name: object, names: Iterable[str]) -> UserError:
    return UserError(f"unknown {what}", f"got {name!r}", suggest(name, names, f"choose one of {', '.join(names)}"))
