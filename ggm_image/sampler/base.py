"""A sampling run: its checked inputs, its random numbers, and rows with the same unknown sites run together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.glauber import check_tokens, checked_noise, uniform_noise

Denoiser = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
Callback = Callable[[int, Tensor], None]
Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass(frozen=True)
class SamplingRun:
    """Checked inputs of one sampling run, all on its device."""

    denoiser: Denoiser
    batch: int
    sites_total: int
    codebook_size: int
    labels: Tensor | None
    known: Tensor | None
    noise: Tensor
    generator: Generators
    callback: Callback | None
    observation: Tensor | None = None

    @property
    def device(self) -> torch.device:
        return self.noise.device

    def rows(self, rows: Tensor) -> SamplingRun:
        """The same run for some of the images."""
        generator = self.generator
        if isinstance(generator, Sequence):
            generator = [generator[k] for k in rows.tolist()]
        return replace(
            self,
            batch=len(rows),
            labels=None if self.labels is None else self.labels[rows],
            known=None if self.known is None else self.known[rows],
            generator=generator,
            observation=None if self.observation is None else self.observation[rows],
        )

    def uniforms(self, count: int) -> Float[Tensor, "b count"]:
        """All random numbers of the run, `count` an image."""
        if isinstance(self.generator, Sequence):
            sampled = torch.empty(self.batch, count, dtype=torch.float64)
            for row, generator in zip(sampled, self.generator, strict=True):
                torch.rand(count, generator=generator, dtype=torch.float64, out=row)
        else:
            sampled = torch.rand(self.batch, count, generator=self.generator, dtype=torch.float64)
        if self.device.type == "mps":  # has no float64; rounding must not reach 1
            return sampled.float().clamp(max=1 - 2**-24).to(self.device)
        return sampled.to(self.device)

    def query(self, tokens: Tensor, levels: Tensor, sites: Tensor) -> Tensor:
        """Clean logits (B, K, V) at `sites`, which are masked in the denoiser's input only; the posterior's, where
        there is an observation."""
        index = sites.expand(self.batch, -1)
        masked = tokens.scatter(1, index, self.codebook_size)
        logits = self.denoiser(masked, levels, sites, self.labels)
        expected = (*index.shape, self.codebook_size)
        if logits.shape != expected:
            raise UserError("the denoiser gives logits of a wrong shape", tuple(logits.shape), f"return {expected}")
        if self.observation is None:
            return logits
        return logits + self.observation.take_along_dim(index.unsqueeze(-1), 1)

    def signal(self, probs: Float[Tensor, "b k v"], tokens: Int[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """The signal logit of each token, up to the constant log keep/(1-keep)."""
        tokens = tokens.clamp(max=self.codebook_size - 1)  # a row without a distribution: reported at the end
        return (probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) / self.noise[tokens]).log()

    def report(self, t: int, tokens: Tensor) -> None:
        if self.callback is not None:
            self.callback(t, tokens.clone())


def start_run(
    denoiser: Denoiser,
    batch: int,
    sites_total: int,
    codebook_size: int,
    labels: Tensor | None,
    known: Tensor | None,
    noise: Tensor | None,
    generator: Generators,
    callback: Callback | None,
    device: torch.device | str | None,
    observation: Tensor | None = None,
) -> SamplingRun:
    if batch < 1 or codebook_size < 1:
        raise UserError("batch and codebook size must be positive", f"{batch}, {codebook_size}", "pass >= 1")
    if device is None:
        given = [x.device for x in (known, labels, noise) if x is not None]
        device = given[0] if given else "cpu"
    if labels is not None and labels.shape != (batch,):
        raise UserError("labels must hold one class an image", tuple(labels.shape), f"pass shape ({batch},)")
    if isinstance(generator, Sequence) and len(generator) != batch:
        raise UserError("generators must be one an image", len(generator), f"pass a list of {batch}")
    if known is not None:
        if known.shape != (batch, sites_total):
            raise UserError("known does not fit", tuple(known.shape), f"pass shape ({batch}, {sites_total})")
        check_tokens(known, codebook_size, lowest=-1)
        known = known.to(device, torch.int64)
    noise = checked_noise(uniform_noise(codebook_size) if noise is None else noise, codebook_size).to(device)
    labels = None if labels is None else labels.to(device)
    if observation is not None:
        expected = (batch, sites_total, codebook_size)
        if observation.shape != expected or not observation.is_floating_point():
            got = f"{observation.dtype} {tuple(observation.shape)}"
            raise UserError(
                "the observation must hold a log-likelihood for every site and code", got, f"pass {expected}"
            )
        if bool((observation.isnan() | (observation == torch.inf)).any()):
            raise UserError("log-likelihoods must be finite or -inf", "NaN or inf", "check the observation")
        observation = observation.to(noise.device)
    return SamplingRun(
        denoiser, batch, sites_total, codebook_size, labels, known, noise, generator, callback, observation
    )


def run_by_pattern(job: SamplingRun, draw: Callable[[SamplingRun, Tensor], Tensor]) -> Int[Tensor, "b l"]:
    """Run rows with the same unknown sites together: their schedule is the same and they share every call."""
    if job.known is None:
        tokens = draw(job, torch.ones(job.sites_total, dtype=torch.bool))
    else:
        patterns, row_pattern = (job.known < 0).cpu().unique(dim=0, return_inverse=True)
        if len(patterns) > 1 and job.callback is not None:
            raise UserError(
                "a callback needs the same known sites in every image",
                f"{len(patterns)} patterns",
                "sample them one by one",
            )
        tokens = torch.empty_like(job.known)
        for p, unknown in enumerate(patterns):
            rows = (row_pattern == p).nonzero().squeeze(1)
            tokens[rows.to(job.device)] = draw(job.rows(rows) if len(patterns) > 1 else job, unknown)
    if int(tokens.max()) >= job.codebook_size:  # how `draw_codes` marks a row without a distribution
        raise UserError("the denoiser gave no distribution", "NaN, or every code ruled out", "check its logits")
    return tokens
