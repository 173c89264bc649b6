"""The reverse Glauber chain on a fixed schedule: arXiv 2405.17035."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ggm_image.sampler.base import Call, Callback, Denoiser, Generators, Plan, SamplingRun, run_by_pattern, start_run
from ggm_image.sampler.settings import Settings
from ggm_image.schedule import Schedule


@torch.no_grad()
def sample(
    denoiser: Denoiser,
    schedule: Schedule,
    batch: int,
    *,
    codebook_size: int,
    labels: Int[Tensor, " b"] | None = None,
    known: Int[Tensor, "b l"] | None = None,
    noise: Float[Tensor, " v"] | None = None,
    generator: Generators = None,
    callback: Callback | None = None,
    device: torch.device | str | None = None,
    observation: Float[Tensor, "b l v"] | None = None,
) -> Int[Tensor, "b l"]:
    """Sample token grids by running the chain backwards.

        x_T ~ noise;   for t = T-1..0:   x_{t,i} ~ level_{t,i} p0(. | x_{t,-B}) + (1 - level_{t,i}) noise,  i
        in B_t

    Args:
        denoiser: gives the clean-token logits, see the module.
        schedule: the chain's steps; it is restricted to the unknown sites where `known` is given.
        batch: B, images to sample.
        codebook_size: V.
        labels: class of each image, passed to the denoiser.
        known: the token where known, -1 where to be filled, (B, L). Known sites keep their token and level 1
            and are never queried. Rows are sampled together with the rows that have the same sites
            unknown, so different patterns in a batch cost one run each.
        noise: distribution over the codes, (V,); uniform where None, and always the one of training.
        generator: one generator for the batch or one an image (CPU).
        callback: called as callback(t, x_t) for t = T..0 (not where rows of `known` have different patterns).
        device: where to work; that of `known`, `labels` or `noise` where None, else the CPU.
        observation: log-likelihood of every code at every site, (B, L, V), see `ggm_image.sampler.observation`.

    Returns:
        Tokens, (B, L), int64.

    Raises:
        UserError: shapes or values that do not fit, or a denoiser that gives NaN.
    """
    sites_total = schedule.height * schedule.width

    def plan(job: SamplingRun, unknown: Tensor) -> Plan:
        return plan_schedule(job, schedule.restricted(unknown))

    job = start_run(
        denoiser, batch, sites_total, codebook_size, labels, known, noise, generator, callback, device, observation
    )
    return run_by_pattern(job, plan)


def sample_by_settings(
    denoiser: Denoiser, settings: Settings, batch: int, *, height: int, width: int, **arguments: Any
) -> Int[Tensor, "b l"]:
    """The sampler ``schedule`` of the registry: `sample` on the schedule that the settings describe."""
    schedule = Schedule.round_robin(
        height,
        width,
        sweeps=settings.sweeps,
        block=min(settings.block, height * width),
        order=settings.site_order,
        curve=settings.curve,
        generator=torch.Generator().manual_seed(0),
    )
    return sample(denoiser, schedule, batch, **arguments)


def plan_schedule(job: SamplingRun, schedule: Schedule) -> Plan:
    """The steps of a schedule from the last to the first, all new tokens kept, from tokens of the noise."""
    steps = schedule.steps
    widest = max((len(step.sites) for step in steps), default=0)
    uniforms = job.uniforms(job.sites_total + len(steps) * widest)
    first, rest = uniforms.split([job.sites_total, len(steps) * widest], dim=1)
    calls = []
    for t in reversed(range(len(steps))):
        sites, levels = schedule.blocks[t % len(schedule.blocks)], schedule.levels(t)
        calls.append(
            Call(
                sites=sites,
                levels=levels,
                site_levels=levels[sites],
                uniforms=rest[:, t * widest : t * widest + len(sites)],
                filled=float(levels.mean()),
            )
        )
    return Plan(job.noise_tokens(first), None, calls)
