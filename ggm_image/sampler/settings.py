"""The sampler's settings, as the presets of a model hold them."""

import difflib
import math
import numbers
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ggm_image.errors import UserError
from ggm_image.sampler.registry import find_sampler
from ggm_image.schedule.registry import find_curve, find_order

FIRST_ORDERS = ("signal", "halton", "bayer")

_RANGES: dict[str, tuple[float, float]] = {
    "sweeps": (1, 10_000),
    "block": (1, 1 << 30),
    "first_block": (1, 1 << 30),
    "guidance": (-1000, 1000),
    "guidance_power": (0, 1000),
    "temperature": (1e-6, 1e6),
    "top_k": (1, 1 << 30),
    "top_p": (1e-9, 1),
    "revise_share": (0, 1),
    "confidence_noise": (0, 1e6),
}
"""What can be drawn with; NaN lies in none of them."""


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


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to sample.

    Attributes:
        order: name of a sampler of `ggm_image.sampler.registry`: "schedule" (fixed blocks, known law; one site a
            step is the paper) or "signal" (the sites that the classifier trusts most are placed first, and those that
            it trusts least are resampled in later sweeps).
        sweeps: S >= 1. For "signal" every sweep after the first revises.
        block: K >= 1 sites a network call; a sweep over L sites makes ceil(L / K) calls.
        first_block: of the first sweep of "signal"; None = `block`. Large blocks are good enough for revision.
        curve: level curve of "schedule", a name of `ggm_image.schedule.CURVES`: sqrt, cosine, linear.
        site_order: which sites share a block, a name of `ggm_image.schedule.ORDERS`: bayer, halton, random.
        guidance: weight of classifier-free guidance, 1 = off; any other weight doubles the cost.
        guidance_power: exponent by which the weight grows from 1 as the image is filled, see `sampler.guided`; 0 is
            constant.
        temperature, top_k, top_p: truncation of the clean-token distribution; 1, None, None = off.
        revise_share: of a block, resampled in a revision call of "signal".
        confidence_noise: Gumbel noise on the choice of sites of "signal", annealed to 0.
        first_order: of the first sweep of "signal": signal, or a fixed order, halton or bayer.
    """

    order: str = "signal"
    sweeps: int = 1
    block: int = 8
    first_block: int | None = None
    curve: str = "sqrt"
    site_order: str = "bayer"
    guidance: float = 1.0
    guidance_power: float = 0.0
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    revise_share: float = 0.25
    confidence_noise: float = 4.5
    first_order: str = "signal"

    def __post_init__(self) -> None:
        find_sampler(self.order)
        find_curve(self.curve)
        find_order(self.site_order)
        if self.first_order not in FIRST_ORDERS:
            got, fix = f"got {self.first_order!r}", f"choose one of {', '.join(FIRST_ORDERS)}"
            raise UserError("first_order is none", got, fix)
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name in ("first_block", "top_k", "top_p"):
                continue
            whole = name in ("sweeps", "block", "first_block", "top_k")
            kinds: tuple[Any, ...] = (numbers.Integral,) if whole else (numbers.Real,)
            if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
                kind = "a whole number" if whole else "a number"
                raise UserError(
                    f"{name} must be {kind} in [{low:g}, {high:g}]", f"got {value!r}", "choose one of these"
                )
            object.__setattr__(self, name, int(value) if whole else float(value))  # NumPy's numbers too

    @staticmethod
    def of(entries: dict[str, Any]) -> "Settings":
        """Settings from a preset of a model's config.yaml.

        Raises:
            UserError: for an unknown entry; names the nearest known one.
        """
        names = [f.name for f in fields(Settings)]
        for name in entries:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1) or names
                raise UserError("unknown sampler setting", f"got {name!r}", f"did you mean {near[0]!r}?")
        return Settings(**entries)

    @staticmethod
    def of_preset(presets: Mapping[str, "Settings"], preset: str, changes: Mapping[str, Any]) -> "Settings":
        """A preset with changes; None leaves the preset's value.

        Raises:
            UserError: for an unknown preset or a value out of range.
        """
        if preset not in presets:
            raise UserError("no such preset", f"got {preset!r}", f"choose one of {', '.join(presets)}")
        return Settings.of(asdict(presets[preset]) | {k: v for k, v in changes.items() if v is not None})

    def calls(self, sites: int) -> int:
        """Network calls for a grid with so many unknown sites (guidance doubles the cost of each)."""
        return self.first_calls(sites) + self.later_calls(sites)

    def first_calls(self, sites: int) -> int:
        """Network calls of the first sweep."""
        first = None if "first_block" in find_sampler(self.order).unused else self.first_block
        return math.ceil(sites / (first or self.block))

    def later_calls(self, sites: int) -> int:
        """Network calls of all sweeps after the first."""
        return (self.sweeps - 1) * math.ceil(sites / self.block)
