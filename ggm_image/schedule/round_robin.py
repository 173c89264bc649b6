"""The chain's steps: a round robin over blocks of sites, and the level of every site before each step.

Legend: `b` batch, `l` = height * width sites (row-major), `k` sites of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.schedule.orders import check_grid, check_permutation, order_sites
from ggm_image.schedule.registry import find_curve, find_order


@dataclass(frozen=True)
class Step:
    """One step of the chain: the sites it touches, and the probability that it leaves each unchanged."""

    sites: Int[Tensor, " k"]
    keep: float


class Schedule:
    """A round robin over blocks of sites. Make one with `Schedule.round_robin`.

    Attributes:
        height, width: the grid.
        blocks: the sites of each step of a sweep, in forward order.
        sweep_levels: a_0 = 1, ..., a_S: every touched site's level after s sweeps.
        steps: steps t = 0..T-1 in forward (noising) order; the sampler walks them backwards.
    """

    def __init__(
        self,
        height: int,
        width: int,
        *,
        blocks: Sequence[Int[Tensor, " _"]],
        sweep_levels: Sequence[float],
        order: Int[Tensor, " u"],
        block: int,
        spread: bool,
    ) -> None:
        self.height, self.width = height, width
        self.blocks = tuple(blocks)
        self.sweep_levels = tuple(sweep_levels)
        self._order, self._block, self._spread = order, block, spread
        keeps = [b / a if a > 0 else 0.0 for a, b in pairwise(sweep_levels)]
        self.steps = tuple(Step(sites, keep) for keep in keeps for sites in self.blocks)
        # the step of the sweep that visits each site; a site that is never visited keeps level 1
        self._visit = torch.full((height * width,), -1, dtype=torch.int64)
        for position, sites in enumerate(self.blocks):
            self._visit[sites] = position

    @classmethod
    def round_robin(
        cls,
        height: int,
        width: int,
        *,
        sweeps: int,
        block: int = 1,
        final_level: float = 0.0,
        order: str | Int[Tensor, " l"] = "bayer",
        curve: str | Callable[[float], float] = "sqrt",
        generator: torch.Generator | None = None,
    ) -> Schedule:
        """Visit every site once per sweep, `block` sites a step, in the same order each sweep.

        Args:
            height, width: the grid.
            sweeps: S >= 1.
            block: K in [1, L], sites a step; 1 is the paper. Where K does not divide L the last block is
                smaller.
            final_level: level of every site after the last sweep, in [0, 1). The sampler starts from pure
                noise, so it is exact only for 0.
            order: a name of `ORDERS`, as "bayer" (ordered dither), "halton" and "random", or a permutation of the
                sites. Blocks are consecutive sites of it; "bayer" and "halton" exchange sites between blocks where
                two sites of a block would be neighbours. The others are cut as they are.
            curve: level after s of S sweeps, before it is scaled to end at `final_level`: a name of `CURVES`, "sqrt" is
                sqrt(1 - s/S) and keeps levels high for long, "cosine", "linear"; "constant-keep" is
                final_level^(s/S), the same keep in every step; or a function of s/S that falls from 1 to 0.
            generator: for order "random".

        Raises:
            UserError: a number out of range, an unknown name, or a curve that rises.
        """
        check_grid(height, width)
        if block < 1 or block > height * width:
            raise UserError(f"block must lie in [1, {height * width}]", block, "choose fewer sites a step")
        if isinstance(order, Tensor):
            sites, spread = order.to("cpu", torch.int64), False
            check_permutation(sites, height, width)
        else:
            sites, spread = order_sites(height, width, order, generator=generator), find_order(order).spread
        return cls(
            height,
            width,
            blocks=_cut(sites, width, block, spread),
            sweep_levels=_sweep_levels(curve, sweeps, final_level),
            order=sites,
            block=block,
            spread=spread,
        )

    def levels(self, t: int) -> Float[Tensor, " l"]:
        """Each site's level before step t, 0 <= t <= T: the product of keep over the earlier steps that
        touched it.

        `levels(0)` is all 1; `levels(T)` is `final_level` at every site that the schedule touches.
        """
        if not 0 <= t <= len(self.steps):
            raise UserError(f"step must lie in [0, {len(self.steps)}]", t, "count steps from 0")
        if not self.steps:
            return torch.ones(self.height * self.width, dtype=torch.float32)
        sweep, position = divmod(t, len(self.blocks))
        before = self.sweep_levels[sweep]
        after = self.sweep_levels[min(sweep + 1, len(self.sweep_levels) - 1)]
        levels = torch.where(self._visit < position, after, before)
        return torch.where(self._visit < 0, 1.0, levels).float()

    def restricted(self, unknown: Bool[Tensor, " l"]) -> Schedule:
        """The same order, block size and levels over the unknown sites only, as infilling needs it.

        The order is split again, so the number of steps falls with the number of unknown sites (none: no
        steps). All other sites keep level 1 and are never in a block.
        """
        if unknown.shape != (self.height * self.width,) or unknown.dtype != torch.bool:
            raise UserError(
                f"unknown must be a boolean mask of {self.height * self.width} sites",
                f"{unknown.dtype} {tuple(unknown.shape)}",
                "flatten the token mask row by row",
            )
        sites = self._order[unknown.cpu()[self._order]]
        if len(sites) == len(self._order):
            return self
        return Schedule(
            self.height,
            self.width,
            blocks=_cut(sites, self.width, self._block, self._spread),
            sweep_levels=self.sweep_levels,
            order=sites,
            block=self._block,
            spread=self._spread,
        )


def _sweep_levels(curve: str | Callable[[float], float], sweeps: int, final_level: float) -> list[float]:
    if sweeps < 1:
        raise UserError("sweeps must be at least 1", sweeps, "one sweep visits every site once")
    if not 0 <= final_level < 1:
        raise UserError("final level must lie in [0, 1)", final_level, "0 ends in pure noise")
    if curve == "constant-keep":
        if final_level == 0 and sweeps > 1:
            raise UserError("constant keep never reaches level 0", f"{sweeps} sweeps", "pass final_level > 0")
        return [1.0, *(final_level ** (s / sweeps) for s in range(1, sweeps)), final_level]
    level_of = curve if callable(curve) else find_curve(curve)
    inner = [final_level + (1 - final_level) * float(level_of(s / sweeps)) for s in range(1, sweeps)]
    levels = [1.0, *inner, final_level]
    if not all(a >= b for a, b in pairwise(levels)):  # NaN fails too
        raise UserError("the level curve must fall from 1 to 0", levels, "check the function")
    return levels


def _cut(order: Int[Tensor, " u"], width: int, block: int, spread: bool) -> list[Int[Tensor, " k"]]:
    """Consecutive blocks of the order; with `spread`, neighbours inside a block are exchanged away."""
    chunks = [chunk.tolist() for chunk in order.split(block)] if len(order) else []
    if spread and 1 < block <= (len(order) + 1) // 2:
        _separate(chunks, width)
    return [torch.tensor(chunk, dtype=torch.int64) for chunk in chunks]


def _separate(chunks: list[list[int]], width: int) -> None:
    """Exchange sites between blocks, nearest in the order first, while that removes pairs of neighbours."""
    where = {site: (c, k) for c, chunk in enumerate(chunks) for k, site in enumerate(chunk)}
    order = list(where)
    ranks = {site: rank for rank, site in enumerate(order)}

    def neighbours(site: int) -> list[int]:
        sides = [site - width, site + width]
        sides += [site - 1] if site % width else []
        sides += [site + 1] if (site + 1) % width else []
        return [other for other in sides if other in where]

    beside = {site: neighbours(site) for site in order}

    def clashes(site: int, chunk: int, without: int = -1) -> int:
        return sum(where[other][0] == chunk for other in beside[site] if other != without)

    def gain(a: int, b: int) -> int:
        ca, cb = where[a][0], where[b][0]
        return clashes(a, ca) + clashes(b, cb) - clashes(a, cb, without=b) - clashes(b, ca, without=a)

    for turn in range(8):  # a few turns settle; an exchange that is no loss helps the next one
        stuck = [rank for rank, site in enumerate(order) if clashes(site, where[site][0])]
        if not stuck:
            return
        for rank in stuck:
            site = order[rank]
            if not clashes(site, where[site][0]):
                continue
            nearest = sorted(order, key=lambda other: abs(ranks[other] - rank))
            others = [other for other in nearest if where[other][0] != where[site][0]]
            gains = [gain(site, other) for other in others]
            best = max(gains)
            if best < 0 or (best == 0 and turn == 7):
                continue
            choices = [other for other, g in zip(others, gains, strict=True) if g == best]
            other = choices[turn % len(choices) if best == 0 else 0]
            (ca, ka), (cb, kb) = where[site], where[other]
            chunks[ca][ka], chunks[cb][kb] = other, site
            where[site], where[other] = (cb, kb), (ca, ka)
