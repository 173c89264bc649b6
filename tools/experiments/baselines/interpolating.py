"""GIDD (arXiv 2503.04482) and Duo (arXiv 2506.10892): a clean token is interpolated with noise, all sites at one time.

    q_t(z | x) = alpha [z = x] + code (z a code) + mask (z the mask id v)

Time t runs from 0, clean, to 1. `MaskUniform` is GIDD's mixture of masking and uniform noise, `UniformState` Duo's
uniform noise. With p the network's distribution of x_0 in the place of x, both papers train and sample by

    bound    the integral over t of  w [ KL(q_t(. | x) || q_t(. | p)) + r - log r - 1 ],   r = q_t(z | x) / q_t(z | p),
             with w the rate at which tokens turn into z, divided by q_t(z | x)
    step     P(z_s = a | z_t) in proportion to q(z_t | z_s = a) q_s(a | p)
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from baselines.base import Network, sample_uniforms
from baselines.uniform import ScoreCriterion
from ggm_image.glauber import sample_codes
from ggm_image.schedule import CURVES, Query
from ggm_image.training.criterion import Criterion
from ggm_image.training.trainer import GeneratorTrainer

EARLIEST = 1e-3
"""Times of training and of the bound lie in [EARLIEST, 1 - EARLIEST]; the bound has a term for either end."""
GREATEST_WEIGHT = 2.0
"""Of GIDD's dynamic weights, that of a masked site."""
CORRECTION_TIME = 0.01
"""What the network is told while GIDD corrects finished tokens, as in its paper."""


class Marginal(NamedTuple):
    """q_t(z | x), see above: probabilities, or the rates at which tokens turn into z (``alpha`` is then unused).

    Attributes:
        alpha: of the clean token, beyond what noise gives it.
        code: of each of the v codes.
        mask: of the mask id.
    """

    alpha: Tensor
    code: Tensor
    mask: Tensor


class Process(ABC):
    """A noise process over v codes and the mask id.

    Attributes:
        codes: v.
    """

    codes: int

    @abstractmethod
    def at(self, t: Float[Tensor, "*n"]) -> Marginal:
        """Probabilities at time t."""

    @abstractmethod
    def rates(self, t: Float[Tensor, "*n"]) -> Marginal:
        """Rates at time t in (0, 1), with which any token turns into a code or into the mask."""


@dataclass(frozen=True)
class UniformState(Process):
    """Duo: alpha = 1 - t, the noise is uniform."""

    codes: int

    def at(self, t: Float[Tensor, "*n"]) -> Marginal:
        return Marginal(1 - t, t / self.codes, torch.zeros_like(t))

    def rates(self, t: Float[Tensor, "*n"]) -> Marginal:
        return Marginal(torch.zeros_like(t), 1 / (1 - t) / self.codes, torch.zeros_like(t))


@dataclass(frozen=True)
class MaskUniform(Process):
    """GIDD with gamma 1: masking, and uniform noise of which there is most half-way, the share ``uniform`` of tokens.

    With c = 2 uniform/(1 - uniform) sqrt(t (1 - t)): alpha = (1 - t)/(1 + c), mask = t/(1 + c), code = c/(1 + c)/v.
    """

    codes: int
    uniform: float = 0.1

    @property
    def scale(self) -> float:
        """The paper's B."""
        return 2 * self.uniform / (1 - self.uniform)

    def at(self, t: Float[Tensor, "*n"]) -> Marginal:
        c = self.scale * (t * (1 - t)).sqrt()
        return Marginal((1 - t) / (1 + c), c / (1 + c) / self.codes, t / (1 + c))

    def rates(self, t: Float[Tensor, "*n"]) -> Marginal:
        # d(code)/dt - code d(log alpha)/dt, and the same of the mask
        root = (t * (1 - t)).sqrt()
        total = 1 + self.scale * root
        return Marginal(torch.zeros_like(t), self.scale / (2 * root * total) / self.codes, 1 / ((1 - t) * total))


def _log_mixed(log_clean: Float[Tensor, "*n v"], q: Marginal) -> Float[Tensor, "*n v"]:
    """log q_t(a | p) of the codes."""
    return torch.logaddexp(log_clean + q.alpha.log().unsqueeze(-1), q.code.log().unsqueeze(-1).expand_as(log_clean))


def divergences(
    log_clean: Float[Tensor, "n v"], z: Int[Tensor, " n"], x_0: Int[Tensor, " n"], q: Marginal
) -> Float[Tensor, " n"]:
    """KL(q_t(. | x_0) || q_t(. | p)) + r - log r - 1, r = q_t(z | x_0) / q_t(z | p); ``log_clean`` is log p."""
    v = log_clean.shape[-1]
    log_mixed = _log_mixed(log_clean, q)
    own = log_mixed.gather(-1, x_0[:, None])[:, 0]
    clean = q.alpha + q.code
    kl = torch.xlogy(clean, clean) + (v - 1) * torch.xlogy(q.code, q.code) - q.code * log_mixed.sum(-1) - q.alpha * own
    masked = z == v
    seen = log_mixed.gather(-1, z.masked_fill(masked, 0)[:, None])[:, 0]
    log_r = (torch.where(z == x_0, clean, q.code).log() - seen).masked_fill(masked, 0.0)
    return kl + log_r.expm1() - log_r


def interpolating_cost(
    process: Process,
    log_clean: Float[Tensor, "n v"],
    z: Int[Tensor, " n"],
    x_0: Int[Tensor, " n"],
    t: Float[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """What a site adds to the bound on -log p(x_0), for a density over t."""
    q, rates = process.at(t), process.rates(t)
    of_code = rates.code / torch.where(z == x_0, q.alpha + q.code, q.code)
    of_mask = rates.mask / q.mask.clamp_min(torch.finfo(t.dtype).tiny)
    return torch.where(z == process.codes, of_mask, of_code) * divergences(log_clean, z, x_0, q)


def dynamic_weights(
    process: MaskUniform, z: Int[Tensor, " n"], x_0: Int[Tensor, " n"], t: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """GIDD's weights of training: 2 where masked, 1 where noisy, B/v sqrt((1 - alpha)/alpha) up to 2 where clean.

    The bound's own weights grow without limit at both ends of time; these have their proportions.
    """
    alpha = process.at(t).alpha
    clean = (process.scale / process.codes * ((1 - alpha) / alpha).sqrt()).clamp_max(GREATEST_WEIGHT)
    return torch.where(z == process.codes, GREATEST_WEIGHT, torch.where(z == x_0, clean, 1.0))


class InterpolatingTrainer(GeneratorTrainer):
    """All sites at one uniform time, and the bound's cost at every site. The network's levels are 1 - t."""

    def process(self) -> Process:
        raise NotImplementedError

    def query(self) -> Query:
        height, width = self.config.network.grid
        return Query(torch.arange(height * width), None)

    def corrupt(self, x_0: Int[Tensor, "b l"], query: Query) -> tuple[Tensor, Tensor]:
        time = torch.rand(len(x_0), generator=self.noise_generator, device=x_0.device)
        levels = (1 - time).clamp(EARLIEST, 1 - EARLIEST)[:, None].expand(x_0.shape)
        q = self.process().at(1 - levels)
        z = self.add_noise(x_0, q.alpha / (1 - q.mask))
        masked = torch.rand(x_0.shape, generator=self.noise_generator, device=x_0.device) < q.mask
        return z.masked_fill(masked, self.config.network.codebook_size), levels

    def make_criterion(self, network: torch.nn.Module) -> Criterion:
        criterion = InterpolatingCriterion(network, self.config.objective, self.noise)
        criterion.process = self.process()
        return criterion


class GIDDTrainer(InterpolatingTrainer):
    """GIDD with a tenth of uniform noise half-way, and dynamic weights."""

    def process(self) -> MaskUniform:
        return MaskUniform(self.config.network.codebook_size)


class DuoTrainer(InterpolatingTrainer):
    """Duo without its curriculum: the bound itself."""

    def process(self) -> UniformState:
        return UniformState(self.config.network.codebook_size)


class InterpolatingCriterion(ScoreCriterion):
    """The network and its cost; GIDD's with dynamic weights."""

    process: Process

    def head(self, features: Tensor, x_0: Tensor, level: Tensor, x_t: Tensor) -> Tensor:
        logits = self.network.logits(features)
        with torch.autocast(logits.device.type, enabled=False):
            log_clean, t = logits.float().log_softmax(-1), 1 - level.float()
            if isinstance(self.process, MaskUniform):
                weights = dynamic_weights(self.process, x_t, x_0, t)
                return (weights * divergences(log_clean, x_t, x_0, self.process.at(t))).mean()
            return interpolating_cost(self.process, log_clean, x_t, x_0, t).mean()


def plug_in_step(
    process: Process, log_clean: Float[Tensor, "b l v"], z: Int[Tensor, "b l"], t: float, s: float
) -> Float[Tensor, "b l v+1"]:
    """P(z_s = a | z_t) at every site up to a factor, s < t, the mask id last."""
    times = torch.tensor([t, s], dtype=torch.float64)
    alpha, code, mask = process.at(times)
    kept = float(alpha[0] / alpha[1])
    # what a token turns into between s and t
    new_code, new_mask = (max(0.0, float(x[0] - kept * x[1])) for x in (code, mask))
    masked = (z == process.codes).unsqueeze(-1)
    before = float(alpha[1]) * log_clean.softmax(-1) + float(code[1])  # (b, l, v)
    before = torch.cat([before, torch.full_like(before[..., :1], float(mask[1]))], dim=-1)
    turned = torch.where(masked, new_mask, new_code).to(before.dtype)
    return before * (turned + kept * torch.nn.functional.one_hot(z, process.codes + 1).to(before.dtype))


def ancestral(
    network: Network,
    process: Process,
    calls: int,
    labels: Int[Tensor, " b"] | None,
    *,
    sites: int,
    generators: Sequence[torch.Generator],
    curve: str = "linear",
    temperature: float = 1.0,
    greedy: bool = False,
    corrections: int = 0,
    corrected: int = 1,
    device: torch.device | str = "cpu",
) -> Int[Tensor, "b l"]:
    """Sample tokens in ``calls`` steps, times along ``curve``, then correct them in further calls.

    Args:
        network: the denoiser; told 1 - t as every site's level.
        process: the noise.
        calls: ancestral steps.
        labels: classes.
        sites: l.
        generators: one an image.
        curve: of `CURVES`: the time after a part of the steps.
        temperature: divides the network's logits; 1 is the paper.
        greedy: take the likeliest token in the last step, Duo's greedy tail.
        corrections: further calls, see `correct`.
        corrected: sites changed in each of these at most.
        device: of the tokens.
    """
    b, v, every = len(generators), process.codes, torch.arange(sites, device=device)
    uniforms = sample_uniforms(generators, (1 + calls + corrections, sites), device)
    start = process.at(torch.tensor(1.0, dtype=torch.float64))
    mask = float(start.mask)
    x = torch.where(uniforms[0] < mask, v, ((uniforms[0] - mask) / max(1 - mask, 1e-12) * v).long().clamp(0, v - 1))
    times = [CURVES[curve](n / calls) for n in range(calls)] + [0.0]

    def log_clean_of(x: Tensor, t: float) -> Tensor:
        levels = torch.full((b, sites), 1 - t, device=device)
        return (network(x, levels, every, labels) / temperature).log_softmax(-1)

    for n in range(calls):
        step = plug_in_step(process, log_clean_of(x, times[n]), x, times[n], times[n + 1])
        tail = greedy and n == calls - 1
        x = step.argmax(-1) if tail else sample_codes(step.log(), uniforms[n + 1])
    for n in range(corrections):
        log_probs = log_clean_of(x, CORRECTION_TIME)
        x = correct(log_probs, x, uniforms[1 + calls + n], corrected)
    return x


def correct(
    log_probs: Float[Tensor, "b l v"], x: Int[Tensor, "b l"], uniforms: Float[Tensor, "b l"], count: int
) -> Int[Tensor, "b l"]:
    """GIDD's self-correction: sample a token for every site, and of those that differ keep the ``count`` likeliest."""
    new = sample_codes(log_probs, uniforms)
    scores = log_probs.gather(-1, new.unsqueeze(-1)).squeeze(-1).exp().masked_fill(new == x, 0.0)
    changed = scores.topk(min(count, x.shape[1]), dim=1).indices
    return x.scatter(1, changed, new.gather(1, changed))


@torch.no_grad()
def interpolating_bound(
    log_clean: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    process: Process,
    tokens: Int[Tensor, "n l"],
    labels: Int[Tensor, " n"] | None,
    *,
    generator: torch.Generator,
    batch_size: int = 100,
) -> float:
    """The upper bound on -log p(x_0), nats per token: the integral over time, and a term for either end.

    ``log_clean(z, levels (b, l), labels)`` gives log p(x_0), (b, l, v). Times are stratified over the rows, denser at
    both ends. The end near 0 is decoded by the step of the sampler; at the other the start is q without x.
    """
    n, sites = tokens.shape
    u = (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator).double()) / n
    time = EARLIEST + (1 - 2 * EARLIEST) * u**3 * (10 - 15 * u + 6 * u**2)
    density = (1 - 2 * EARLIEST) * 30 * u**2 * (1 - u) ** 2
    total = torch.zeros((), dtype=torch.float64)
    for rows in torch.arange(n).split(batch_size):
        x_0, own = tokens[rows], None if labels is None else labels[rows]
        t = time[rows][:, None].expand(-1, sites)
        z = add_process_noise(process, x_0, t, generator)
        answer = log_clean(z, 1 - t, own).double()
        cost = interpolating_cost(process, answer.flatten(0, 1), z.flatten(), x_0.flatten(), t.flatten())
        total += (cost.view(x_0.shape).mean(1) * density[rows]).sum()
        early = torch.full_like(t, EARLIEST)
        z = add_process_noise(process, x_0, early, generator)
        decoded = plug_in_step(process, log_clean(z, 1 - early, own).double(), z, EARLIEST, 0.0)
        log_decoded = (decoded / decoded.sum(-1, keepdim=True)).gather(-1, x_0.unsqueeze(-1)).squeeze(-1).log()
        total -= log_decoded.mean(1).sum()
    return float(total) / n + _start_divergence(process)


def add_process_noise(
    process: Process, x_0: Int[Tensor, "b l"], t: Float[Tensor, "b l"], generator: torch.Generator
) -> Int[Tensor, "b l"]:
    """z of q_t(z | x_0)."""
    q, v = process.at(t), process.codes
    u_kind, u_code = torch.rand((2, *x_0.shape), generator=generator, dtype=torch.float64)
    noisy = torch.where(u_kind < q.alpha, x_0, (u_code * v).long())
    return noisy.masked_fill(u_kind >= 1 - q.mask, v)


def _start_divergence(process: Process) -> float:
    """KL(q(z | x) || q without x) of a site at the latest time, where the clean share is spread over all codes."""
    alpha, code, _ = (float(x) for x in process.at(torch.tensor(1 - EARLIEST, dtype=torch.float64)))
    flat = alpha / process.codes + code
    others = (process.codes - 1) * code * math.log(code / flat)
    return (alpha + code) * math.log((alpha + code) / flat) + others
