"""The order that follows the signal logit, or is fixed, and then revision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.sampler.base import Call, Callback, Denoiser, Generators, Plan, SamplingRun, run_by_pattern, start_run
from ggm_image.sampler.settings import FIRST_ORDERS, Settings
from ggm_image.schedule import Schedule, order_sites


@torch.no_grad()
def sample_signal(
    denoiser: Denoiser,
    batch: int,
    *,
    height: int,
    width: int,
    codebook_size: int,
    calls: int,
    revise_calls: int = 0,
    revise_share: float = 0.25,
    block: int | None = None,
    confidence_noise: float = 4.5,
    first_order: str = "signal",
    labels: Int[Tensor, " b"] | None = None,
    known: Int[Tensor, "b l"] | None = None,
    noise: Float[Tensor, " v"] | None = None,
    generator: Generators = None,
    callback: Callback | None = None,
    device: torch.device | str | None = None,
    observation: Float[Tensor, "b l v"] | None = None,
) -> Int[Tensor, "b l"]:
    """Sample token grids most signal first, then revise what looks like noise.

    Call n = 1..calls queries every unplaced site (mask id, level 0), samples its token a ~ p0, and places the
    sites of highest log p0(a) - log noise(a) + confidence_noise (1 - n/calls) Gumbel, so that
    floor(U cos(pi/2 n/calls)) of the U unknown sites are left: with uniform noise, MaskGIT's decoding. Or, by the
    same law, the next sites of a fixed order are queried and placed: "halton" is arXiv 2503.17076's. Then
    a revision call masks the next spread (Bayer) block, all else at level 1, and resamples the
    `revise_share` of it whose old token has the lowest signal logit. Not exact: the choice of sites looks at
    the tokens.

    Args:
        denoiser, batch, codebook_size, labels, known, noise, generator, device, observation: as `sample`.
        height, width: the grid.
        calls: network calls of the first sweep, >= 1; at most one an unknown site is made.
        revise_calls: network calls after it.
        revise_share: share of a block in [0, 1] that is resampled, at least one site.
        block: sites queried in a revision call; a quarter of the grid where None.
        confidence_noise: Gumbel noise on the confidence at the start; it falls linearly to 0.
        first_order: which sites the first sweep places first: "signal", or an order of `order_sites`, "halton" or
            "bayer".
        callback: called as callback(calls left, tokens); unplaced sites hold the mask id V.

    Returns:
        Tokens, (B, L), int64.

    Raises:
        UserError: as `sample`, or a setting out of range.
    """
    _check(calls, revise_calls, revise_share, confidence_noise, first_order)
    order = None if first_order == "signal" else order_sites(height, width, first_order)
    block = max(1, height * width // 4) if block is None else block
    spread = Schedule.round_robin(height, width, sweeps=1, block=block)

    def plan(job: SamplingRun, unknown: Tensor) -> Plan:
        # The random numbers of the first sweep come first, so the revision does not change what it revises.
        if order is None:
            first = _place_by_signal(job, unknown, calls, confidence_noise)
        else:
            first = _place_in_order(job, order[unknown[order]], calls)
        later = _revise(job, spread.restricted(unknown).blocks, revise_calls, revise_share)
        masked = unknown.nonzero().squeeze(1).expand(job.batch, -1) if order is None else None
        return Plan(job.masked_tokens(), masked, [*first, *later])

    job = start_run(
        denoiser, batch, height * width, codebook_size, labels, known, noise, generator, callback, device, observation
    )
    return run_by_pattern(job, plan)


def _check(calls: int, revise_calls: int, revise_share: float, confidence_noise: float, first_order: str) -> None:
    if calls < 1 or revise_calls < 0:
        raise UserError("network calls must be positive", f"{calls}, then {revise_calls}", "pass calls >= 1")
    if not 0 <= revise_share <= 1:
        raise UserError("the share to revise must lie in [0, 1]", revise_share, "e.g. 0.25")
    if not confidence_noise >= 0:
        raise UserError("the confidence noise must not be negative", confidence_noise, "0 turns it off")
    if first_order not in FIRST_ORDERS:
        raise UserError("unknown first order", first_order, f"choose one of {', '.join(FIRST_ORDERS)}")


def sample_by_settings(
    denoiser: Denoiser, settings: Settings, batch: int, *, height: int, width: int, **arguments: Any
) -> Int[Tensor, "b l"]:
    """The sampler ``signal`` of the registry: `sample_signal` with the calls that the settings ask for."""
    known, sites = arguments.get("known"), height * width
    unknown = sites if known is None else int((known[0] < 0).sum())  # the same in every row
    return sample_signal(
        denoiser,
        batch,
        height=height,
        width=width,
        calls=max(1, settings.first_calls(unknown)),
        revise_calls=settings.later_calls(unknown),
        revise_share=settings.revise_share,
        block=min(settings.block, sites),
        confidence_noise=settings.confidence_noise,
        first_order=settings.first_order,
        **arguments,
    )


def _place_by_signal(job: SamplingRun, unknown: Bool[Tensor, " l"], calls: int, confidence_noise: float) -> list[Call]:
    """One adaptive sweep: query all masked sites, keep the tokens that are signal most surely."""
    total = int(unknown.sum())
    calls = min(calls, total)
    u_token, u_gumbel = job.uniforms(2 * calls * job.sites_total).unflatten(1, (2, calls, job.sites_total)).unbind(1)
    planned, left = [], total
    for n in range(calls):
        place = left - _left_masked(total, left, n, calls)
        gumbel = -(-u_gumbel[:, n].log()).log()
        planned.append(
            Call(
                uniforms=u_token[:, n],
                keep="surest",
                count=place,
                jitter=confidence_noise * (1 - (n + 1) / calls) * gumbel,
                filled=(job.sites_total - left) / job.sites_total,
            )
        )
        left -= place
    return planned


def _place_in_order(job: SamplingRun, order: Int[Tensor, " u"], calls: int) -> list[Call]:
    """One sweep over the unknown sites in a fixed order: query the next of them and keep all their tokens."""
    total = len(order)
    calls = min(calls, total)
    uniforms = job.uniforms(job.sites_total)
    planned, placed = [], 0
    for n in range(calls):
        until = total - _left_masked(total, total - placed, n, calls)
        block = order[placed:until]
        filled = (job.sites_total - total + placed) / job.sites_total
        planned.append(Call(sites=block, uniforms=uniforms[:, block], filled=filled))
        placed = until
    return planned


def _revise(job: SamplingRun, blocks: Sequence[Int[Tensor, " _"]], calls: int, share: float) -> list[Call]:
    """Judge one block a call, and resample the share of it that looks most like noise."""
    calls = calls if blocks else 0
    uniforms = job.uniforms(calls * job.sites_total).unflatten(1, (calls, job.sites_total))
    planned = []
    for n in range(calls):
        block = blocks[n % len(blocks)]
        count = max(1, round(share * len(block)))
        planned.append(Call(sites=block, uniforms=uniforms[:, n, block], keep="doubted", count=count, filled=1.0))
    return planned


def _left_masked(unknown: int, left: int, n: int, calls: int) -> int:
    """Sites still masked after call n = 0..calls-1: the cosine law, with at least one placed in each call."""
    if n == calls - 1:
        return 0
    lawful = math.floor(unknown * math.cos(math.pi / 2 * (n + 1) / calls))
    return max(min(lawful, left - 1), calls - 1 - n)
