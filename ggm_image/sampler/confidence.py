"""The order that follows the signal logit, or is fixed, and then revision."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.glauber import sample_codes_of
from ggm_image.sampler.base import Callback, Denoiser, Generators, SamplingRun, run_by_pattern, start_run
from ggm_image.sampler.settings import FIRST_ORDERS
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
    """Draw token grids most signal first, then revise what looks like noise.

    Call n = 1..calls queries every unplaced site (mask id, level 0), draws its token a ~ p0, and places the
    sites of highest log p0(a) - log noise(a) + confidence_noise (1 - n/calls) Gumbel, so that
    floor(U cos(pi/2 n/calls)) of the U unknown sites are left: with uniform noise, MaskGIT's decoding. Or, by the
    same law, the next sites of a fixed order are queried and placed: "halton" is arXiv 2503.17076's. Then
    a revision call masks the next spread (Bayer) block, all else at level 1, and draws anew the
    `revise_share` of it whose old token has the lowest signal logit. Not exact: the choice of sites looks at
    the tokens.

    Args:
        denoiser, batch, codebook_size, labels, known, noise, generator, device, observation: as `sample`.
        height, width: the grid.
        calls: network calls of the first sweep, >= 1; at most one an unknown site is made.
        revise_calls: network calls after it.
        revise_share: share of a block in [0, 1] that is drawn anew, at least one site.
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
    if calls < 1 or revise_calls < 0:
        raise UserError("network calls must be positive", f"{calls}, then {revise_calls}", "pass calls >= 1")
    if not 0 <= revise_share <= 1:
        raise UserError("the share to revise must lie in [0, 1]", revise_share, "e.g. 0.25")
    if not confidence_noise >= 0:
        raise UserError("the confidence noise must not be negative", confidence_noise, "0 turns it off")
    if first_order not in FIRST_ORDERS:
        raise UserError("the first order is none", first_order, f"choose one of {', '.join(FIRST_ORDERS)}")
    order = None if first_order == "signal" else order_sites(height, width, first_order)  # type: ignore[arg-type]
    block = max(1, height * width // 4) if block is None else block
    spread = Schedule.round_robin(height, width, sweeps=1, block=block)

    def draw(job: SamplingRun, unknown: Tensor) -> Tensor:
        if order is None:
            x = _place_by_signal(job, int(unknown.sum()), calls, confidence_noise, revise_calls)
        else:
            x = _place_in_order(job, order[unknown[order]], calls, revise_calls)
        return _revise(job, x, spread.restricted(unknown).blocks, revise_calls, revise_share)

    job = start_run(
        denoiser, batch, height * width, codebook_size, labels, known, noise, generator, callback, device, observation
    )
    return run_by_pattern(job, draw)


def _place_by_signal(
    job: SamplingRun, unknown: int, calls: int, confidence_noise: float, calls_after: int
) -> Int[Tensor, "b l"]:
    """One adaptive sweep: query all masked sites, place those whose token is signal most surely."""
    calls = min(calls, unknown)
    u_token, u_gumbel = job.uniforms(2 * calls * job.sites_total).unflatten(1, (2, calls, job.sites_total)).unbind(1)
    x = torch.full((job.batch, job.sites_total), job.codebook_size, device=job.device)
    if job.known is not None:
        x = torch.where(job.known < 0, x, job.known)
    levels = (x != job.codebook_size).float()
    sites = (levels == 0).nonzero()[:, 1].view(job.batch, unknown)
    job.report(calls + calls_after, x)
    for n in range(calls):
        probs = torch.softmax(job.query(x, levels, sites).to(job.noise.dtype), dim=-1)
        tokens = sample_codes_of(probs, u_token[:, n].gather(1, sites))
        gumbel = -(-u_gumbel[:, n].gather(1, sites).log()).log()
        confidence = job.signal(probs, tokens) + confidence_noise * (1 - (n + 1) / calls) * gumbel
        place = sites.shape[1] - _left_masked(unknown, sites.shape[1], n, calls)
        ranked = confidence.argsort(dim=1, descending=True, stable=True)
        placed, rest = ranked[:, :place], ranked[:, place:].sort(dim=1).values
        x = x.scatter(1, sites.gather(1, placed), tokens.gather(1, placed))
        levels = levels.scatter(1, sites.gather(1, placed), 1.0)
        sites = sites.gather(1, rest)
        job.report(calls - 1 - n + calls_after, x)
    return x


def _place_in_order(job: SamplingRun, order: Int[Tensor, " u"], calls: int, calls_after: int) -> Int[Tensor, "b l"]:
    """One sweep over the unknown sites in a fixed order: query the next of them and place them all."""
    unknown = len(order)
    calls = min(calls, unknown)
    uniforms = job.uniforms(job.sites_total)
    x = torch.full((job.batch, job.sites_total), job.codebook_size, device=job.device)
    if job.known is not None:
        x = torch.where(job.known < 0, x, job.known)
    job.report(calls + calls_after, x)
    placed = 0
    for n in range(calls):
        until = unknown - _left_masked(unknown, unknown - placed, n, calls)
        block = order[placed:until].to(job.device)
        probs = torch.softmax(job.query(x, (x != job.codebook_size).float(), block).to(job.noise.dtype), dim=-1)
        x[:, block] = sample_codes_of(probs, uniforms[:, block])
        placed = until
        job.report(calls - 1 - n + calls_after, x)
    return x


def _revise(
    job: SamplingRun, x: Int[Tensor, "b l"], blocks: Sequence[Int[Tensor, " _"]], calls: int, share: float
) -> Int[Tensor, "b l"]:
    """Judge one block a call, and draw anew the share of it that looks most like noise."""
    calls = calls if blocks else 0
    uniforms = job.uniforms(calls * job.sites_total).unflatten(1, (calls, job.sites_total))
    levels = torch.ones(job.sites_total, dtype=torch.float32, device=job.device).expand_as(x)
    for n in range(calls):
        block = blocks[n % len(blocks)].to(job.device)
        probs = torch.softmax(job.query(x, levels, block).to(job.noise.dtype), dim=-1)
        count = max(1, round(share * len(block)))
        worst = job.signal(probs, x[:, block]).topk(count, dim=1, largest=False).indices
        sampled = sample_codes_of(probs, uniforms[:, n, block])
        x = x.scatter(1, block[worst], sampled.gather(1, worst))
        job.report(calls - 1 - n, x)
    return x


def _left_masked(unknown: int, left: int, n: int, calls: int) -> int:
    """Sites still masked after call n = 0..calls-1: the cosine law, with at least one placed in each call."""
    if n == calls - 1:
        return 0
    lawful = math.floor(unknown * math.cos(math.pi / 2 * (n + 1) / calls))
    return max(min(lawful, left - 1), calls - 1 - n)
