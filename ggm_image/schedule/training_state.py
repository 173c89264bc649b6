"""What training shows the network: levels and queried sites as all samplers will.

Legend: `b` batch, `l` = height * width sites (row-major), `k` queried sites.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ggm_image.schedule.orders import bayer, check_grid


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
    """Sample levels and queried sites as the samplers will show them to the network.

    The queried sites are shared by the batch (a cheap head); everything else is sampled for each row:

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
        block: K, always this one; sampled as above where None.

    Returns:
        TrainingState: levels (B, L), sites (K,), level (B, K).
    """
    check_grid(height, width)
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
    check_grid(height, width)
    sites_total = height * width
    choice, share, spread, start = torch.rand(4, generator=generator).tolist()
    k = block or _block_size(choice, share, sites_total, cosine)
    if spread >= lattice:
        return Query(torch.randperm(sites_total, generator=generator)[:k], None)
    order = bayer(height, width)
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
