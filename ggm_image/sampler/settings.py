"""The sampler's settings, as the presets of a model hold them."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import Field

from ggm_image.errors import UserError
from ggm_image.sampler.counts import check_count, check_seed
from ggm_image.sampler.registry import find_sampler
from ggm_image.schedule.registry import find_curve, find_order
from ggm_image.validation import Fraction, Number, Whole, build, checked, one_of

__all__ = ["FIRST_ORDERS", "Settings", "check_count", "check_seed"]

FIRST_ORDERS = ("signal", "halton", "bayer")

Count = Annotated[Whole, Field(ge=1, le=1 << 30)]


@checked(noun="sampler setting", fix="change the setting", frozen=True)
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
    sweeps: Annotated[Whole, Field(ge=1, le=10_000)] = 1
    block: Count = 8
    first_block: Count | None = None
    curve: str = "sqrt"
    site_order: str = "bayer"
    guidance: Annotated[Number, Field(ge=-1000, le=1000)] = 1.0
    guidance_power: Annotated[Number, Field(ge=0, le=1000)] = 0.0
    temperature: Annotated[Number, Field(ge=1e-6, le=1e6)] = 1.0
    top_k: Count | None = None
    top_p: Annotated[Number, Field(ge=1e-9, le=1)] | None = None
    revise_share: Fraction = 0.25
    confidence_noise: Annotated[Number, Field(ge=0, le=1e6)] = 4.5
    first_order: Annotated[str, one_of(FIRST_ORDERS)] = "signal"

    def __post_init__(self) -> None:
        find_sampler(self.order)
        find_curve(self.curve)
        find_order(self.site_order)

    @staticmethod
    def of(entries: dict[str, Any]) -> "Settings":
        """Settings from a preset of a model's config.yaml; errors as of `ggm_image.validation.build`."""
        return build(Settings, entries)

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
