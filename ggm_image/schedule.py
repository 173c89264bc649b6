"""Which sites each step touches, and how clean every site is before it.

Legend: `b` batch, `l` = height * width sites (row-major), `k` sites of a block.

The forward chain visits the sites in a fixed order, a block a step, every site once per sweep (arXiv
2405.17035: one site a step). After s of S sweeps every site has level a_s, with a_0 = 1 and a_S =
`final_level`; a step of sweep s leaves a site unchanged with probability keep = a_{s+1} / a_s. Hence in
closed form, before step t, in sweep s:

    level_{t,i} = a_{s+1} if site i was visited in this sweep, else a_s

Beyond the paper: blocks of several sites, chosen so that they are spread over the 2D grid (the error of a
block update is the dependence inside the block), any curve a_s, and schedules restricted to unknown sites.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ggm_image.errors import UserError

OrderName = Literal["bayer", "halton", "random"]
Curve = Literal["sqrt", "cosine", "linear", "constant-keep"] | Callable[[float], float]

ORDERS: tuple[str, ...] = ("bayer", "halton", "random")
# Each falls from 1 at x = 0 to 0 at x = 1, where x = s/S is the share of sweeps done.
CURVES: dict[str, Callable[[float], float]] = {
    "sqrt": lambda x: math.sqrt(1 - x),
    "cosine": lambda x: math.cos(math.pi / 2 * x),
    "linear": lambda x: 1 - x,
}


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
        order: OrderName | Int[Tensor, " l"] = "bayer",
        curve: Curve = "sqrt",
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
            order: "bayer" (ordered dither), "halton", "random", or a permutation of the sites. Blocks are
                consecutive sites of it; "bayer" and "halton" exchange sites between blocks where two
                sites of a block would be neighbours. The others are cut as they are.
            curve: level after s of S sweeps, before it is scaled to end at `final_level`: "sqrt" is
                sqrt(1 - s/S) and keeps levels high for long, "cosine", "linear"; "constant-keep" is
                final_level^(s/S), the same keep in every step; or a function of s/S that falls from 1 to 0.
            generator: for order "random".

        Raises:
            UserError: a number out of range, an unknown name, or a curve that rises.
        """
        _check_grid(height, width)
        if block < 1 or block > height * width:
            raise UserError(f"block must lie in [1, {height * width}]", block, "choose fewer sites a step")
        if isinstance(order, Tensor):
            sites, spread = order.to("cpu", torch.int64), False
            if not torch.equal(sites.sort().values, torch.arange(height * width)):
                raise UserError("order must be a permutation of the sites", tuple(order.shape), "list each once")
        else:
            sites, spread = order_sites(height, width, order, generator=generator), order != "random"
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

        The order is cut anew, so the number of steps falls with the number of unknown sites (none: no
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


def order_sites(
    height: int, width: int, order: OrderName = "bayer", *, generator: torch.Generator | None = None
) -> Int[Tensor, " l"]:
    """All sites of the grid in an order of which every run is spread out.

    "bayer": the ordered-dither matrix of the enclosing power-of-two square, outside cells dropped; a prefix
    is a lattice, or nearly. "halton": cells in the order in which the Halton sequence (bases 2 and 3) first
    visits them. "random": a permutation from `generator`.
    """
    _check_grid(height, width)
    if order == "random":
        return torch.randperm(height * width, generator=generator)
    if order == "bayer":
        return _bayer(height, width).clone()
    if order == "halton":
        return _halton(height, width).clone()
    raise UserError("unknown order", order, f"choose one of {', '.join(ORDERS)}")


class TrainingState(NamedTuple):
    """What one training batch looks like; see `random_training_state`."""

    levels: Float[Tensor, "b l"]  # every site's level, queried sites included
    sites: Int[Tensor, " k"]  # queried sites, shared by the batch
    level: Float[Tensor, "b k"]  # levels[:, sites]


def random_training_state(
    batch: int,
    height: int,
    width: int,
    *,
    generator: torch.Generator | None = None,
    masked: float = 0.3,
    known: float = 0.25,
    cosine: float = 0.4,
    lattice: float = 0.5,
    max_sweeps: int = 64,
    block: int | None = None,
) -> TrainingState:
    """Draw levels and queried sites as all samplers will show them to the network.

    The queried sites are shared by the batch (a cheap head); everything else is drawn for each row:

    - K: with probability `cosine` by the cosine law (any share, mean 0.64), else two times of three uniform in
      15%..60% of the sites, and log-uniform from one site to 15%. With probability `lattice` a block of the Bayer
      order (the last one may be smaller), else a random set.
    - sweeps S log-uniform in 1..max_sweeps, the current sweep s uniform, a curve of sqrt, cosine or linear:
      sites not yet visited in the sweep, the queried ones among them, have level a_s, visited ones a_{s+1}.
      Visited are the Bayer prefix before the block, or a random share of the sites.
    - with probability `masked` a row is in the masked-diffusion state: every level is 1, the queried sites'
      too.
    - with probability `known` some sites that are not queried have level 1: a random share, or all outside a
      rectangle.

    Args:
        batch: B, rows.
        height, width: the grid.
        generator: CPU generator; the tensors are returned on the CPU.
        masked, known, cosine, lattice: the probabilities above.
        max_sweeps: the largest S.
        block: K, always this one; drawn as above where None.

    Returns:
        TrainingState: levels (B, L), sites (K,), level (B, K).
    """
    _check_grid(height, width)
    query = random_query(height, width, generator=generator, cosine=cosine, lattice=lattice, block=block)
    levels = random_levels(
        query, batch, height, width, generator=generator, masked=masked, known=known, max_sweeps=max_sweeps
    )
    return TrainingState(levels, query.sites, levels[:, query.sites])


class Query(NamedTuple):
    """What the rows of a training batch have in common."""

    sites: Int[Tensor, " k"]  # queried sites
    visited: Bool[Tensor, " l"] | None  # sites that the sweep has visited; None where each row has its own


def random_query(
    height: int,
    width: int,
    *,
    generator: torch.Generator | None = None,
    cosine: float = 0.4,
    lattice: float = 0.5,
    block: int | None = None,
) -> Query:
    """The first half of `random_training_state`: the queried sites, on the CPU; arguments as there."""
    _check_grid(height, width)
    sites_total = height * width
    choice, share, spread, start = torch.rand(4, generator=generator).tolist()
    k = block or _block_size(choice, share, sites_total, cosine)
    if spread >= lattice:
        return Query(torch.randperm(sites_total, generator=generator)[:k], None)
    order = _bayer(height, width)
    # one of the blocks of the sampler: it asks for these, and every site is in exactly one of them
    first = k * int(start * math.ceil(sites_total / k))
    visited = torch.zeros(sites_total, dtype=torch.bool)
    visited[order[:first]] = True
    return Query(order[first : first + k], visited)


def random_levels(
    query: Query,
    batch: int,
    height: int,
    width: int,
    *,
    generator: torch.Generator | None = None,
    masked: float = 0.3,
    known: float = 0.25,
    max_sweeps: int = 64,
) -> Float[Tensor, "b l"]:
    """The second half of `random_training_state`: every site's level (B, L), on the device of ``query``.

    Nothing waits for the device. ``generator`` must be one of that device; the other arguments are as there.
    """
    device, sites_total = query.sites.device, height * width

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, device=device)

    if query.visited is None:
        visited = rand(batch, sites_total) < rand(batch, 1)
    else:
        visited = query.visited.expand(batch, -1)
    queried = torch.zeros(sites_total, dtype=torch.bool, device=device).index_fill_(0, query.sites, True)

    before, after = _random_sweep(rand(3, batch), max_sweeps)
    levels = torch.where(visited & ~queried, after[:, None], before[:, None])
    levels = levels.masked_fill(_random_known(rand, batch, height, width, known) & ~queried, 1.0)
    return levels.masked_fill(rand(batch, 1) < masked, 1.0)


def _block_size(choice: float, share: float, sites: int, cosine: float) -> int:
    if choice < cosine:
        part = math.cos(math.pi / 2 * share)
    elif choice < cosine + (1 - cosine) * 2 / 3:
        part = 0.15 + 0.45 * share
    else:
        part = math.exp(share * math.log(max(0.15 * sites, 1.0))) / sites
    return min(max(math.ceil(part * sites), 1), sites)


def _random_sweep(u: Float[Tensor, "3 b"], max_sweeps: int) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Levels a_s and a_{s+1} of a random sweep of a random schedule, one a row."""
    sweeps = (math.log(max_sweeps + 1) * u[0]).exp().floor().clamp(1, max_sweeps)
    done = (u[1] * sweeps).floor().clamp(max=sweeps - 1)
    x = torch.stack([done, done + 1]) / sweeps
    curve = (3 * u[2]).floor()
    level = torch.where(curve == 0, (1 - x).sqrt(), torch.where(curve == 1, (math.pi / 2 * x).cos(), 1 - x))
    level = level.masked_fill(x >= 1, 0.0)  # cos(pi/2) is not quite 0
    return level[0], level[1]


def _random_known(
    rand: Callable[..., Tensor], batch: int, height: int, width: int, probability: float
) -> Bool[Tensor, "b l"]:
    """Sites to set to level 1: none, a random share, or everything outside a rectangle."""
    kind = rand(batch, 1)
    scattered = rand(batch, height * width) < rand(batch, 1)
    top, bottom = (rand(2, batch, 1) * (height + 1)).floor().sort(0).values
    left, right = (rand(2, batch, 1) * (width + 1)).floor().sort(0).values
    y, x = torch.arange(height, device=kind.device), torch.arange(width, device=kind.device)
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    inside = (rows[:, :, None] & columns[:, None, :]).flatten(1)
    chosen = torch.where(kind < probability / 2, scattered, ~inside)
    return chosen & (kind < probability)


def _check_grid(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise UserError("the grid needs at least one site", f"{height} x {width}", "pass height and width >= 1")


def _sweep_levels(curve: Curve, sweeps: int, final_level: float) -> list[float]:
    if sweeps < 1:
        raise UserError("sweeps must be at least 1", sweeps, "one sweep visits every site once")
    if not 0 <= final_level < 1:
        raise UserError("final level must lie in [0, 1)", final_level, "0 ends in pure noise")
    if curve == "constant-keep":
        if final_level == 0 and sweeps > 1:
            raise UserError("constant keep never reaches level 0", f"{sweeps} sweeps", "pass final_level > 0")
        return [1.0, *(final_level ** (s / sweeps) for s in range(1, sweeps)), final_level]
    if not callable(curve):
        if curve not in CURVES:
            names = ", ".join([*CURVES, "constant-keep"])
            raise UserError("unknown curve", curve, f"choose one of {names}")
        curve = CURVES[curve]
    inner = [final_level + (1 - final_level) * float(curve(s / sweeps)) for s in range(1, sweeps)]
    levels = [1.0, *inner, final_level]
    if not all(a >= b for a, b in pairwise(levels)):  # NaN fails too
        raise UserError("the level curve must fall from 1 to 0", levels, "check the function")
    return levels


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # what is kept serves training too
def _bayer(height: int, width: int) -> Int[Tensor, " l"]:
    y = torch.arange(height)[:, None].expand(height, width).flatten()
    x = torch.arange(width)[None, :].expand(height, width).flatten()
    rank = torch.zeros_like(x)
    for bit in range((max(height, width) - 1).bit_length()):
        # the lowest bit of a coordinate decides first: (even, even), (odd, odd), then the other two cosets
        rank = 4 * rank + 2 * (((x ^ y) >> bit) & 1) + ((y >> bit) & 1)
    return rank.argsort()


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def _halton(height: int, width: int) -> Int[Tensor, " l"]:
    # 2^p >= 2 width and 3^q >= 2 height: every cell then holds a whole elementary interval, so a point falls
    # in it
    p = (2 * width - 1).bit_length()
    q = math.ceil(math.log(2 * height, 3))
    n = torch.arange(2**p * 3**q)
    x = (_radical_inverse(n, 2, p) * width) // 2**p
    y = (_radical_inverse(n, 3, q) * height) // 3**q
    cell = y * width + x
    first = torch.full((height * width,), len(n)).scatter_reduce(0, cell, n, "amin")
    return first.argsort()


def _radical_inverse(n: Int[Tensor, " n"], base: int, digits: int) -> Int[Tensor, " n"]:
    """The last `digits` digits of n mirrored, as an integer below base^digits."""
    mirrored = torch.zeros_like(n)
    for _ in range(digits):
        mirrored = mirrored * base + n % base
        n = n // base
    return mirrored


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
