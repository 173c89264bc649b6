"""A sampling run in two parts: a plan made on the host, and one step that follows it.

Legend: `b` batch, `l` sites, `k` queried sites, `t` calls, `v` codes; the mask id is V.

A sampler is a function that plans its calls: which sites, at which signal levels, with which random numbers, and which
of the new tokens are kept. The plan is moved to the device at once. `run_plan` then repeats `step`, in which nothing
depends on the value of a tensor, so the host never waits for the device before the last call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.glauber import check_tokens, checked_noise, sample_codes_of, sample_noise, uniform_noise

Denoiser = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
Callback = Callable[[int, Tensor], None]
Generators = torch.Generator | Sequence[torch.Generator] | None


class PlannedDenoiser(Protocol):
    """A denoiser that depends on the share of filled sites, which a plan knows in advance."""

    def __call__(self, tokens: Tensor, levels: Tensor, sites: Tensor, labels: Tensor | None, /) -> Tensor: ...

    def for_calls(self, filled: Sequence[float], device: torch.device) -> list[Denoiser]:
        """One denoiser a call, none of which waits for the device.

        Args:
            filled: mean signal level of the sites before each call, the same in every row.
            device: of the calls.
        """
        ...


def denoisers_for_calls(denoiser: Denoiser, filled: Sequence[float], device: torch.device) -> list[Denoiser]:
    """One denoiser a call: those that it plans itself, or the same one for all."""
    plan = getattr(denoiser, "for_calls", None)
    return [denoiser] * len(filled) if plan is None else plan(filled, device)


@dataclass(frozen=True)
class Call:
    """One network call; all of it is known before the first one.

    Attributes:
        uniforms: random numbers in [0, 1) of the new tokens: (B, K) for ``sites``, (B, L) where these are None.
        sites: (K,) sites queried; None for the sites that are still masked, each row's own.
        levels: (L,) signal levels that the denoiser receives; None for 1 where a token stands and 0 elsewhere.
        site_levels: (K,) signal levels of the heat bath; None for 1, the clean distribution.
        keep: which new tokens are kept: "all"; "surest", the ``count`` of highest signal logit plus ``jitter``; or
            "doubted", those of the ``count`` sites whose old token has the lowest signal logit.
        count: see ``keep``.
        jitter: (B, L), see ``keep``.
        filled: mean signal level of the sites before the call.
    """

    uniforms: Float[Tensor, "b _"]
    filled: float
    sites: Int[Tensor, " k"] | None = None
    levels: Float[Tensor, " l"] | None = None
    site_levels: Float[Tensor, " k"] | None = None
    keep: Literal["all", "surest", "doubted"] = "all"
    count: int = 0
    jitter: Float[Tensor, "b l"] | None = None


@dataclass(frozen=True)
class Plan:
    """What one run does.

    Attributes:
        tokens: (B, L) before the first call, V where there is none yet.
        masked: (B, U) sites that hold V, ascending, for calls without ``sites``; None where there is no such call.
        calls: in turn.
    """

    tokens: Int[Tensor, "b l"]
    masked: Int[Tensor, "b u"] | None
    calls: Sequence[Call]

    def to(self, device: torch.device) -> Plan:
        """The plan on a device: one copy for each type of number, for any number of calls."""
        if device.type == "cpu":
            return self
        parts: list[Plan | Call] = [self, *self.calls]
        found: dict[int, Tensor] = {id(x): x for part in parts for x in _tensors(part).values()}
        moved: dict[int, Tensor] = {}
        for dtype in dict.fromkeys(x.dtype for x in found.values()):
            same = {key: x for key, x in found.items() if x.dtype == dtype}
            flat = torch.cat([x.flatten() for x in same.values()]).to(device)
            for (key, x), values in zip(same.items(), flat.split([x.numel() for x in same.values()]), strict=True):
                moved[key] = values.view(x.shape)

        calls = tuple(_with_tensors(call, moved) for call in self.calls)
        return replace(_with_tensors(self, moved), calls=calls)


_Part = TypeVar("_Part", Plan, Call)


def _tensors(part: Plan | Call) -> dict[str, Tensor]:
    values = {field.name: getattr(part, field.name) for field in fields(part)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _with_tensors(part: _Part, moved: dict[int, Tensor]) -> _Part:
    changes: dict[str, Any] = {name: moved[id(value)] for name, value in _tensors(part).items()}
    return replace(part, **changes)


class State(NamedTuple):
    """What a step changes."""

    tokens: Int[Tensor, "b l"]
    masked: Int[Tensor, "b u"] | None


@dataclass(frozen=True)
class SamplingRun:
    """Checked inputs of one sampling run: ``known`` and, until `on_device`, ``noise`` on the host."""

    denoiser: Denoiser
    batch: int
    sites_total: int
    codebook_size: int
    labels: Tensor | None
    known: Tensor | None
    noise: Tensor
    generator: Generators
    callback: Callback | None
    device: torch.device
    observation: Tensor | None = None

    def rows(self, rows: Tensor) -> SamplingRun:
        """The same run for some of the images; ``rows`` is on the host."""
        generator = self.generator
        if isinstance(generator, Sequence):
            generator = [generator[k] for k in rows.tolist()]

        def some(x: Tensor | None) -> Tensor | None:
            return None if x is None else x[rows.to(x.device)]

        return replace(
            self,
            batch=len(rows),
            labels=some(self.labels),
            known=some(self.known),
            generator=generator,
            observation=some(self.observation),
        )

    def on_device(self) -> SamplingRun:
        def moved(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(self.device)

        return replace(
            self,
            labels=moved(self.labels),
            noise=self.noise.to(self.device),
            observation=moved(self.observation),
        )

    def uniforms(self, count: int) -> Float[Tensor, "b count"]:
        """Random numbers of the run, `count` an image, on the host: image k is then the same on every device."""
        if isinstance(self.generator, Sequence):
            sampled = torch.empty(self.batch, count, dtype=torch.float64)
            for row, generator in zip(sampled, self.generator, strict=True):
                torch.rand(count, generator=generator, dtype=torch.float64, out=row)
        else:
            sampled = torch.rand(self.batch, count, generator=self.generator, dtype=torch.float64)
        if self.device.type == "mps":  # has no float64; rounding must not reach 1
            return sampled.float().clamp(max=1 - 2**-24)
        return sampled

    def with_known(self, tokens: Int[Tensor, "b l"]) -> Int[Tensor, "b l"]:
        """The tokens, and those that are known in their places."""
        return tokens if self.known is None else torch.where(self.known < 0, tokens, self.known)

    def masked_tokens(self) -> Int[Tensor, "b l"]:
        """The known tokens, and the mask id everywhere else."""
        return self.with_known(torch.full((self.batch, self.sites_total), self.codebook_size))

    def noise_tokens(self, uniforms: Float[Tensor, "b l"]) -> Int[Tensor, "b l"]:
        """The known tokens, and tokens of the noise distribution everywhere else."""
        return self.with_known(sample_noise(self.noise, uniforms))

    def query(self, denoiser: Denoiser, tokens: Tensor, levels: Tensor, sites: Tensor) -> Tensor:
        """Clean logits (B, K, V) at `sites`, which are masked in the denoiser's input only; the posterior's, where
        there is an observation."""
        index = sites.expand(self.batch, -1)
        masked = tokens.scatter(1, index, self.codebook_size)
        logits = denoiser(masked, levels, sites, self.labels)
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


def run_plan(job: SamplingRun, plan: Plan) -> Int[Tensor, "b l"]:
    """All calls of a plan, one after the other, on the run's device."""
    job, plan = job.on_device(), plan.to(job.device)
    denoisers = denoisers_for_calls(job.denoiser, [call.filled for call in plan.calls], job.device)
    state = State(plan.tokens, plan.masked)
    job.report(len(plan.calls), state.tokens)
    for left, call, denoiser in zip(reversed(range(len(plan.calls))), plan.calls, denoisers, strict=True):
        state = step(job, denoiser, call, state)
        job.report(left, state.tokens)
    return state.tokens


def step(job: SamplingRun, denoiser: Denoiser, call: Call, state: State) -> State:
    """One network call: new tokens at its sites from the heat bath, of which some or all are kept.

    Its branches depend on the plan alone, never on the value of a tensor.
    """
    x = state.tokens
    sites = state.masked if call.sites is None else call.sites
    if sites is None:
        raise ValueError("a call for masked sites needs a plan that lists them")
    index = sites.expand(job.batch, -1)  # (b, k)
    levels = (x != job.codebook_size).float() if call.levels is None else call.levels.expand_as(x)
    logits = job.query(denoiser, x, levels, sites)  # (b, k, v)
    probs = torch.softmax(logits.to(torch.promote_types(logits.dtype, job.noise.dtype)), dim=-1)
    if call.site_levels is not None:  # level p0 + (1 - level) noise
        level = call.site_levels.to(probs.dtype).unsqueeze(-1)  # (k, 1)
        probs = torch.addcmul((1 - level) * job.noise.to(probs.dtype), level, probs)
    new = sample_codes_of(probs, call.uniforms.gather(1, index) if call.sites is None else call.uniforms)  # (b, k)
    if call.keep == "all":
        return State(x.scatter(1, index, new), None if call.sites is None else state.masked)
    if call.keep == "doubted":
        kept = job.signal(probs, x.gather(1, index)).topk(call.count, dim=1, largest=False).indices
        return State(x.scatter(1, index.gather(1, kept), new.gather(1, kept)), state.masked)
    surety = job.signal(probs, new)
    if call.jitter is not None:
        surety = surety + call.jitter.gather(1, index)
    ranked = surety.argsort(dim=1, descending=True, stable=True)
    kept, left = ranked[:, : call.count], ranked[:, call.count :].sort(dim=1).values
    return State(x.scatter(1, index.gather(1, kept), new.gather(1, kept)), index.gather(1, left))


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
    """The inputs of a run, checked.

    Raises:
        UserError: shapes or values that do not fit.
    """
    if batch < 1 or codebook_size < 1:
        raise UserError("batch and codebook size must be positive", f"{batch}, {codebook_size}", "pass >= 1")
    # Work where the inputs are, unless a device is named.
    if device is None:
        given = [x.device for x in (known, labels, noise) if x is not None]
        device = given[0] if given else "cpu"
    device = torch.device(device)
    if labels is not None and labels.shape != (batch,):
        raise UserError("labels must hold one class an image", tuple(labels.shape), f"pass shape ({batch},)")
    if isinstance(generator, Sequence) and len(generator) != batch:
        raise UserError("generators must be one an image", len(generator), f"pass a list of {batch}")
    if known is not None:
        if known.shape != (batch, sites_total):
            raise UserError("known does not fit", tuple(known.shape), f"pass shape ({batch}, {sites_total})")
        # The plan is made on the CPU, from which sites are known.
        known = known.cpu()
        check_tokens(known, codebook_size, lowest=-1)
        known = known.to(torch.int64)
    noise = checked_noise(uniform_noise(codebook_size) if noise is None else noise.cpu(), codebook_size)
    if observation is not None:
        expected = (batch, sites_total, codebook_size)
        if observation.shape != expected or not observation.is_floating_point():
            got = f"{observation.dtype} {tuple(observation.shape)}"
            raise UserError(
                "the observation must hold a log-likelihood for every site and code", got, f"pass {expected}"
            )
        if bool((observation.isnan() | (observation == torch.inf)).any()):
            raise UserError("log-likelihoods must be finite or -inf", "NaN or inf", "check the observation")
    return SamplingRun(
        denoiser, batch, sites_total, codebook_size, labels, known, noise, generator, callback, device, observation
    )


def run_by_pattern(
    job: SamplingRun, make_plan: Callable[[SamplingRun, Bool[Tensor, " l"]], Plan]
) -> Int[Tensor, "b l"]:
    """Run rows with the same unknown sites together: their plan is the same and they share every call."""
    if job.known is None:
        patterns, row_pattern = torch.ones(1, job.sites_total, dtype=torch.bool), None
    else:
        patterns, row_pattern = (job.known < 0).unique(dim=0, return_inverse=True)
    if len(patterns) > 1 and job.callback is not None:
        raise UserError(
            "a callback needs the same known sites in every image",
            f"{len(patterns)} patterns",
            "sample them one by one",
        )
    if row_pattern is None or len(patterns) == 1:
        tokens = run_plan(job, make_plan(job, patterns[0]))
    else:
        tokens = torch.empty(job.batch, job.sites_total, dtype=torch.int64, device=job.device)
        for p, unknown in enumerate(patterns):
            rows = (row_pattern == p).nonzero().squeeze(1)
            part = job.rows(rows)
            tokens[rows.to(job.device)] = run_plan(part, make_plan(part, unknown))
    if int(tokens.max()) >= job.codebook_size:  # how `sample_codes_of` marks a row without a distribution
        raise UserError("the denoiser gave no distribution", "NaN, or every code ruled out", "check its logits")
    return tokens
