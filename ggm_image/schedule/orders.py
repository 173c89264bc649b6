"""Orders of all sites of a grid, of which every run is spread out."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from jaxtyping import Int
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.schedule.registry import find_order


def order_sites(
    height: int, width: int, order: str = "bayer", *, generator: torch.Generator | None = None
) -> Int[Tensor, " l"]:
    """All sites of the grid in an order of `ORDERS`, of which every run is spread out.

    "bayer": the ordered-dither matrix of the enclosing power-of-two square, outside cells dropped; a prefix
    is a lattice, or nearly. "halton": cells in the order in which the Halton sequence (bases 2 and 3) first
    visits them. "random": a permutation from `generator`.

    Raises:
        UserError: no site, an unknown name, or an order that is no permutation.
    """
    check_grid(height, width)
    sites: Int[Tensor, " l"] = find_order(order).load()(height, width, generator)
    check_permutation(sites, height, width)
    return sites


def check_permutation(sites: Tensor, height: int, width: int) -> None:
    """Raise UserError unless each site of the grid is listed once."""
    if not torch.equal(sites.sort().values, torch.arange(height * width)):
        raise UserError("order must be a permutation of the sites", tuple(sites.shape), "list each once")


def check_grid(height: int, width: int) -> None:
    """Raise UserError unless the grid has a site."""
    if height < 1 or width < 1:
        raise UserError("the grid needs at least one site", f"{height} x {width}", "pass height and width >= 1")


def bayer(height: int, width: int, generator: torch.Generator | None = None) -> Int[Tensor, " l"]:
    """The ordered-dither matrix; nothing is random."""
    return _bayer(height, width).clone()


def halton(height: int, width: int, generator: torch.Generator | None = None) -> Int[Tensor, " l"]:
    """First visits of the Halton sequence; nothing is random."""
    return _halton(height, width).clone()


def uniform(height: int, width: int, generator: torch.Generator | None = None) -> Int[Tensor, " l"]:
    """A permutation from the generator."""
    return torch.randperm(height * width, generator=generator)


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
