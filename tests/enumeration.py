"""Brute force on tiny grids: joints, exact denoisers, and the exact law of a schedule.

Written apart from the package. A law over grids is a float64 tensor of V^L probabilities; state number n has
the base-V digits of n as its tokens, site 0 first.
"""

import itertools
import math

import torch
from torch import Tensor


def all_states(sites: int, codes: int) -> Tensor:
    """Every grid, (V^L, L) int64, in the order of the laws."""
    return torch.tensor(list(itertools.product(range(codes), repeat=sites)))


def potts(height: int, width: int, codes: int, coupling: float, *, field: float = 0.3, seed: int = 0) -> Tensor:
    """A Potts model with a random field: neighbours like to agree. The law, (V^L,)."""
    states = all_states(height * width, codes)
    grid = states.view(-1, height, width)
    agree = (grid[:, 1:] == grid[:, :-1]).flatten(1).sum(1) + (grid[:, :, 1:] == grid[:, :, :-1]).flatten(1).sum(1)
    fields = field * torch.randn(height * width, codes, generator=torch.Generator().manual_seed(seed)).double()
    energy = coupling * agree.double() + fields.gather(1, states.T).sum(0)
    return torch.softmax(energy, 0)


def noised(law: Tensor, levels: Tensor, noise: Tensor, codes: int) -> Tensor:
    """The law of x_t where x_0 has `law` and site i keeps its token with probability levels[i]."""
    sites = len(levels)
    law = law.view((codes,) * sites)
    for i in range(sites):
        kept = levels[i] * law
        law = kept + (1 - levels[i]) * law.sum(i, keepdim=True) * noise.view(
            [-1 if j == i else 1 for j in range(sites)]
        )
    return law.flatten()


class ExactDenoiser:
    """The perfect network: logits of P(x_{0,i} = a | the tokens that are not masked, and their levels)."""

    def __init__(self, law: Tensor, sites: int, codes: int, noise: Tensor) -> None:
        self.law, self.codes, self.noise = law, codes, noise.double()
        self.states = all_states(sites, codes)
        self.calls = 0

    def __call__(self, tokens: Tensor, levels: Tensor, sites: Tensor, labels: Tensor | None) -> Tensor:
        self.calls += 1
        index = sites.expand(len(tokens), -1)
        assert bool((tokens.gather(1, index) == self.codes).all()), "queried sites must hold the mask id"
        # equal questions are answered once: the number of contexts is small, that of draws is not
        weight = (self.codes + 1) ** torch.arange(tokens.shape[1])
        question = (tokens * weight).sum(1)
        if not bool((levels == levels[:1]).all()):
            question = question * 2 ** tokens.shape[1] + ((levels == 1) * 2 ** torch.arange(tokens.shape[1])).sum(1)
        number, which = question.unique(return_inverse=True)
        row = torch.empty_like(number).scatter_(0, which, torch.arange(len(tokens)))
        return self._answer(tokens[row], levels[row].double(), index[row])[which]

    def _answer(self, tokens: Tensor, levels: Tensor, sites: Tensor) -> Tensor:
        weight = self.law.expand(len(tokens), -1)
        for j in range(tokens.shape[1]):
            token, level = tokens[:, j], levels[:, j, None]
            seen = level * (self.states[:, j] == token[:, None]) + (1 - level) * self.noise[token % self.codes][:, None]
            weight = weight * torch.where((token == self.codes)[:, None], 1.0, seen)
        probs = torch.stack([self._marginal(weight, sites[:, k]) for k in range(sites.shape[1])], dim=1)
        return probs.log()

    def _marginal(self, weight: Tensor, site: Tensor) -> Tensor:
        return torch.zeros(len(weight), self.codes).double().scatter_add_(1, self.states.T[site], weight)


def exact_law(
    schedule,
    law: Tensor,
    noise: Tensor,
    codes: int,
    *,
    known: Tensor | None = None,
    observation: Tensor | None = None,
    mistake: str = "",
) -> Tensor:
    """The law of the reverse chain with a perfect denoiser, by applying each step's Markov operator.

    `known` (L,) holds the known tokens, -1 elsewhere; the schedule is then already a restricted one. Levels
    are multiplied up from `keep` here, not asked of the schedule. `observation` (L, V) is the log-likelihood of each
    site's code, which is added to the denoiser's logits. `mistake` breaks the chain on purpose, for
    power.
    """
    sites = schedule.height * schedule.width
    denoiser = ExactDenoiser(law, sites, codes, noise)
    states = all_states(sites, codes)
    noise = noise.double()
    now = noise[states].prod(1) if mistake != "uniform start" else torch.full_like(law, 1 / len(law))
    if known is not None:
        now = torch.where(((known < 0) | (states == known)).all(1), noise[states].where(known < 0, 1.0).prod(1), 0.0)
    levels = [torch.ones(sites).double()]
    for step in schedule.steps:
        after = levels[-1].clone()
        after[step.sites] *= step.keep
        levels.append(after)
    for t in reversed(range(len(schedule.steps))):
        block = schedule.steps[t].sites
        level = levels[t + 1] if mistake == "levels after the step" else levels[t]
        tokens = states.clone()
        tokens[:, block] = codes
        logits = denoiser(tokens, level.expand(len(states), -1), block, None)
        if observation is not None:
            logits = logits + observation[block]
        clean = torch.softmax(logits, -1)
        share = level[block][:, None]
        if mistake == "level and 1-level swapped":
            share = 1 - share
        bath = share * clean + (1 - share) * noise
        given = bath.gather(-1, states[:, block, None]).squeeze(-1).prod(1)
        dims = tuple(block.tolist())
        context = now.view((codes,) * sites).sum(dims, keepdim=True).expand((codes,) * sites).flatten()
        now = context * given.nan_to_num(0.0)  # contexts that cannot occur have no conditional
    return now


def kl(p: Tensor, q: Tensor) -> float:
    """KL(p || q) in nats."""
    return float(torch.where(p > 0, p * (p.clamp(min=1e-300) / q.clamp(min=1e-300)).log(), 0.0).sum())


def state_numbers(tokens: Tensor, codes: int) -> Tensor:
    """The number of each grid in the laws, (B,)."""
    return (tokens * codes ** torch.arange(tokens.shape[1]).flip(0)).sum(1)


def chi_square(tokens: Tensor, law: Tensor, codes: int) -> tuple[float, int]:
    """Pearson's statistic of draws against the law, and its degrees of freedom; rare states are pooled."""
    counts = torch.bincount(state_numbers(tokens, codes), minlength=len(law)).double()
    expected = law * len(tokens)
    assert float(counts[law <= 0].sum()) == 0, "a state of probability zero was drawn"
    common = expected >= 5
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    hoped = torch.cat([expected[common], expected[~common].sum()[None]])
    observed, hoped = observed[hoped > 0], hoped[hoped > 0]
    return float(((observed - hoped) ** 2 / hoped).sum()), len(hoped) - 1


def critical(freedom: int, z: float) -> float:
    """Upper critical value of chi-square at a one-sided normal quantile z (Wilson and Hilferty)."""
    a = 2 / (9 * freedom)
    return freedom * (1 - a + z * math.sqrt(a)) ** 3


def divergence(p: Tensor, q: Tensor) -> float:
    """Sum (p - q)^2 / q: times the number of draws it is the mean shift of the chi-square against q."""
    return float(torch.where(q > 0, (p - q) ** 2 / q.clamp(min=1e-300), 0.0).sum())
