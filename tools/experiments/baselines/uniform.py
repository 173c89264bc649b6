"""D3PM and SEDD: uniform noise on every token, all sites redrawn in every step.

Both sample all sites at once in a step (tau-leaping; SEDD's is the paper's Tweedie step). With exact networks the two
steps are the same: the product of the exact posteriors of the sites.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from baselines.base import LOWEST_LEVEL, Network, sample_uniforms
from ggm_image.glauber import add_noise, sample_codes
from ggm_image.schedule import CURVES, Query
from ggm_image.training.criterion import Criterion
from ggm_image.training.trainer import GeneratorTrainer


class D3PMTrainer(GeneratorTrainer):
    """D3PM: all sites at one level, which falls as a cosine of a uniform time; cross-entropy of x_0 at every site."""

    def levels(self, time: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return (math.pi / 2 * time).cos()

    def query(self) -> Query:
        height, width = self.config.network.grid
        return Query(torch.arange(height * width), None)

    def corrupt(self, x_0: Int[Tensor, "b l"], query: Query) -> tuple[Tensor, Tensor]:
        time = torch.rand(len(x_0), generator=self.noise_generator, device=x_0.device)
        levels = self.levels(time).clamp(LOWEST_LEVEL, 1)[:, None].expand(x_0.shape)
        return self.add_noise(x_0, levels), levels


class SEDDTrainer(D3PMTrainer):
    """SEDD: all sites at one level, which falls linearly in time; score entropy at every site."""

    def levels(self, time: Float[Tensor, " b"]) -> Float[Tensor, " b"]:
        return 1 - (1 - LOWEST_LEVEL) * time

    def make_criterion(self, network: torch.nn.Module) -> Criterion:
        return ScoreCriterion(network, self.config.objective, self.noise)


class ScoreCriterion(Criterion):
    """The network and its score entropy."""

    def forward(
        self, tokens: Tensor, levels: Tensor, sites: Tensor, labels: Tensor, x_0: Tensor, level: Tensor
    ) -> Tensor:
        x = self.network.features(tokens, levels, sites, labels)  # (b, l, d)
        return self.head(x.flatten(0, 1), x_0.flatten(), level.flatten(), tokens.flatten())

    def head(self, features: Tensor, x_0: Tensor, level: Tensor, x_t: Tensor) -> Tensor:
        logits = self.network.logits(features)
        with torch.autocast(logits.device.type, enabled=False):
            return score_entropy(logits.float(), x_t, x_0, level).mean()


def score_entropy(
    log_score: Float[Tensor, "n v"], x_t: Int[Tensor, " n"], x_0: Int[Tensor, " n"], level: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """SEDD's loss at a site, weighted so that its integral over the level from 1 to 0 bounds -log p(x_0).

        1/level u sum_{a != x_t} [ s(a) - r(a) log s(a) + r(a) (log r(a) - 1) ],   r(a) = q(a | x_0) / q(x_t | x_0)

    with q(a | x_0) = level [a = x_0] + (1 - level) u.
    """
    v = log_score.shape[-1]
    low = (1 - level) / v  # q(a | x_0), a != x_0
    log_score = log_score.scatter(-1, x_t[:, None], 0.0)
    others = log_score.exp().sum(-1) - 1  # without s(x_t) = 1
    plain, clean = log_score.sum(-1), log_score.gather(-1, x_0[:, None])[:, 0]
    kept = x_t == x_0
    down = low / (level + low)  # r(a) for all a, where x_t = x_0
    up = ((level + low) / low.clamp_min(torch.finfo(low.dtype).tiny)).masked_fill(kept, 1.0)  # r(x_0), where it is not
    mean_log = torch.where(kept, down * plain, plain - clean + up * clean)
    entropy = torch.where(kept, (v - 1) * (torch.xlogy(down, down) - down), -(v - 2) + torch.xlogy(up, up) - up)
    return (others - mean_log + entropy) / (v * level)


def forward(
    x_t: Int[Tensor, "b l"], keep: float | Float[Tensor, "b 1 1"], like: Float[Tensor, "b l v"]
) -> Float[Tensor, "b l v"]:
    """q(x_t | a) for every token a that a site may have had, where it keeps it with probability ``keep``."""
    v = like.shape[-1]
    return keep * F.one_hot(x_t, v).to(like.dtype) + (1 - keep) / v


def clean_weights(
    log_clean: Float[Tensor, "b l v"], x_t: Int[Tensor, "b l"], level: float | Float[Tensor, "b 1 1"]
) -> Float[Tensor, "b l v"]:
    """p(x_0 = a | x_t) / q(x_t | x_0 = a) of D3PM's answers."""
    return log_clean.softmax(-1) / forward(x_t, level, log_clean)


def d3pm_step(
    log_clean: Float[Tensor, "b l v"], x_t: Int[Tensor, "b l"], level: float, next_level: float
) -> Float[Tensor, "b l v"]:
    """P(x_s = a | x_t) at every site, where x_s is cleaner: the mean of q(a | x_t, x_0) over p(x_0 | x_t)."""
    v, keep = log_clean.shape[-1], level / next_level
    weights = clean_weights(log_clean, x_t, level)
    before = next_level * weights + (1 - next_level) / v * weights.sum(-1, keepdim=True)
    return before * forward(x_t, keep, before)


def sedd_step(
    log_score: Float[Tensor, "b l v"], x_t: Int[Tensor, "b l"], level: float, next_level: float
) -> Float[Tensor, "b l v"]:
    """P(x_s = a | x_t) at every site: the noise between s and t is taken out of the ratios, then Bayes' rule.

    A network's ratios may be of no distribution; what would be negative is 0.
    """
    v, keep = log_score.shape[-1], level / next_level
    ratios = log_score.scatter(-1, x_t.unsqueeze(-1), 0.0).exp()
    before = (ratios - (1 - keep) / v * ratios.sum(-1, keepdim=True)) / keep
    return before.clamp_min(0) * forward(x_t, keep, before)


def d3pm_log_score(
    log_clean: Float[Tensor, "b l v"], x_t: Int[Tensor, "b l"], level: float | Float[Tensor, "b 1 1"]
) -> Float[Tensor, "b l v"]:
    """The ratios p_t(a at the site) / p_t(x_t) that D3PM's answers imply, as logarithms."""
    v, weights = log_clean.shape[-1], clean_weights(log_clean, x_t, level)
    return (level * weights + (1 - level) / v * weights.sum(-1, keepdim=True)).log()


Step = Callable[[Tensor, Tensor, float, float], Tensor]


def tau_leap(
    network: Network,
    step: Step,
    calls: int,
    labels: Int[Tensor, " b"] | None,
    *,
    sites: int,
    codebook_size: int,
    generators: Sequence[torch.Generator],
    curve: str = "cosine",
    first_level: float = LOWEST_LEVEL,
    temperature: float = 1.0,
    device: torch.device | str = "cpu",
) -> Int[Tensor, "b l"]:
    """Sample tokens in ``calls`` steps, all sites in each: levels from ``first_level`` to 1 along ``curve``.

    The start is pure noise, which is right for a first level near 0 only; but SEDD's first step divides by that level,
    and a network's errors with it. A temperature divides the network's logarithms; 1 is the paper.
    """
    b, curve_of = len(generators), CURVES[curve]
    uniforms = sample_uniforms(generators, (calls + 1, sites), device)
    x = (uniforms[0] * codebook_size).long()
    every = torch.arange(sites, device=device)
    grid = [max(first_level, curve_of(1 - n / calls)) for n in range(calls)] + [1.0]
    for n in range(calls):
        level, next_level = grid[n], grid[n + 1]
        sample = network(x, torch.full((b, sites), level, device=device), every, labels) / temperature
        x = sample_codes(step(sample, x, level, next_level).log(), uniforms[n + 1])
    return x


@torch.no_grad()
def score_bound(
    log_score: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    tokens: Int[Tensor, "n l"],
    labels: Int[Tensor, " n"] | None,
    *,
    codebook_size: int,
    generator: torch.Generator,
    batch_size: int = 100,
) -> float:
    """SEDD's upper bound on -log p(x_0), nats per token: the integral of the score entropy, and the start's divergence.

    ``log_score(x_t, levels (b, l), labels)`` gives (b, l, v). Levels are stratified over the rows, denser at both ends.
    """
    n, noise = len(tokens), torch.full((codebook_size,), 1 / codebook_size, dtype=torch.float64)
    u = (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator).double()) / n
    level = LOWEST_LEVEL + (1 - LOWEST_LEVEL) * u**2 * (3 - 2 * u)
    density = (1 - LOWEST_LEVEL) * 6 * u * (1 - u)
    total = torch.zeros((), dtype=torch.float64)
    for rows in torch.arange(n).split(batch_size):
        x_0, levels = tokens[rows], level[rows][:, None].expand(-1, tokens.shape[1])
        x_t = add_noise(x_0, levels, noise, generator=generator)
        sample = log_score(x_t, levels, None if labels is None else labels[rows]).double()
        cost = score_entropy(sample.flatten(0, 1), x_t.flatten(), x_0.flatten(), levels.flatten())
        total += (cost.view(x_0.shape).mean(1) * density[rows]).sum()
    return float(total) / n + start_divergence(codebook_size)


def start_divergence(v: int) -> float:
    """KL(q(x_T | x_0) || noise) of a site at the lowest level."""
    low = (1 - LOWEST_LEVEL) / v
    clean = LOWEST_LEVEL + low
    return clean * math.log(clean * v) + (v - 1) * low * math.log(low * v)
