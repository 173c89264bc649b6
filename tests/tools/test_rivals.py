"""ReMDM and the self-criticising sampler against brute force: laws and bounds by enumeration.

The joint is a Potts model of 2 x 2 sites, or 1 x 2 where histories are enumerated; an exact network is a table.
Chi-squares as in tests/sampler/test_sampler.py.
"""

import itertools
import math
from collections import defaultdict
from types import ModuleType

import pytest
import torch
from torch import Tensor

from tests.enumeration import all_states, chi_square, critical, divergence, potts, state_numbers
from tests.tools.small_joint import CODES, DRAWS, LAW, MASK, SITES, STATES, seeded

# The masked network. Histories matter to ReMDM's confidence, so two sites are enough to enumerate.

PAIR = potts(1, 2, CODES, 1.0, seed=1)
PAIRS = all_states(2, CODES)


def conditional(law: Tensor, states: Tensor, context: tuple[int, ...]) -> Tensor:
    """P(x_0 at a site = a | the tokens in place), (l, v); uniform at sites that hold a token: nobody may look there."""
    seen = torch.tensor(context)
    weight = law * ((states == seen) | (seen == MASK)).all(1)
    found = torch.stack([(weight[:, None] * (states == a)).sum(0) for a in range(CODES)], dim=-1)
    found = found / found.sum(-1, keepdim=True)
    return torch.where((seen == MASK)[:, None], found, torch.full_like(found, 1 / CODES))


class MaskedTable:
    """The exact network for masked sites."""

    def __init__(self, law: Tensor, states: Tensor) -> None:
        self.law, self.states, self.known, self.calls = law, states, {}, 0

    def __call__(self, tokens: Tensor, levels: Tensor, sites: Tensor, labels: Tensor | None) -> Tensor:
        self.calls += 1
        number, which = state_numbers(tokens, CODES + 1).unique(return_inverse=True)
        row = torch.empty_like(number).scatter_(0, which, torch.arange(len(tokens)))
        for k, context in zip(number.tolist(), tokens[row].tolist(), strict=True):
            if k not in self.known:
                self.known[k] = conditional(self.law, self.states, tuple(context)).log()
        return torch.stack([self.known[k] for k in number.tolist()])[which][:, sites]


def remdm_law(plan: list[tuple[float, float, float]], *, by_confidence: bool) -> Tensor:
    """The law of ReMDM on the pair: a dictionary of (tokens, probabilities with which they were placed)."""
    start = ((MASK, MASK), (math.inf, math.inf))
    now = {start: 1.0}
    for alpha, later, sigma in plan:
        share = (later - (1 - (0.0 if by_confidence else sigma)) * alpha) / (1 - alpha)
        after: dict = defaultdict(float)
        for (tokens, placed), chance in now.items():
            probs = conditional(PAIR, PAIRS, tokens)
            total = sum(math.exp(-p) for p in placed)
            choices = []
            for i, token in enumerate(tokens):
                if token == MASK:
                    filled = [(a, float(probs[i, a]), share * float(probs[i, a])) for a in range(CODES)]
                    choices.append([(MASK, math.inf, 1 - share), *filled])
                    continue
                drop = sigma * math.exp(-placed[i]) / total if by_confidence else sigma
                choices.append([(MASK, math.inf, drop), (token, placed[i], 1 - drop)])
            for one, two in itertools.product(*choices):
                after[(one[0], two[0]), (one[1], two[1])] += chance * one[2] * two[2]
        now = after
    law = torch.zeros(len(PAIR)).double()
    for (tokens, _), chance in now.items():
        if MASK in tokens:
            assert chance < 1e-12
        else:
            law[CODES * tokens[0] + tokens[1]] += chance
    return law


@pytest.mark.parametrize("strategy", ["cap", "rescale", "conf", "loop"])
def test_remdm_has_its_exactly_computed_law(baselines, strategy):
    """Six calls. Seen to fail without remasking."""
    plan = baselines.remasking_plan(strategy, 6, 0.7, curve="cosine")
    expected = remdm_law(plan, by_confidence=strategy == "conf")
    assert float(expected.sum()) == pytest.approx(1)
    plain = remdm_law([(alpha, later, 0.0) for alpha, later, _ in plan if alpha != later], by_confidence=False)
    assert DRAWS * divergence(plain, expected) > 40
    network = MaskedTable(PAIR, PAIRS)
    tokens = baselines.remdm(
        network, plan, None, sites=2, codebook_size=CODES, generators=seeded(DRAWS), by_confidence=strategy == "conf"
    )
    assert network.calls == 6
    statistic, freedom = chi_square(tokens, expected, CODES)
    assert critical(freedom, -3.7) < statistic < critical(freedom, 3.7)


@pytest.mark.parametrize("strategy", ["cap", "rescale", "loop"])
@pytest.mark.parametrize("calls", [1, 2, 5, 16, 64])
def test_a_plan_keeps_the_share_of_tokens_for_every_sigma(baselines, strategy, calls):
    """Bayes: what stays and what is filled add up to alpha_s, and both are probabilities."""
    for eta, curve in itertools.product((0.0, 0.3, 1.0), ("linear", "cosine")):
        plan = baselines.remasking_plan(strategy, calls, eta, curve=curve)
        assert len(plan) == calls
        assert plan[0][0] == 0
        assert plan[-1][1] == 1
        assert [after for _, after, _ in plan[:-1]] == [before for before, _, _ in plan[1:]]
        for alpha, later, sigma in plan:
            share = baselines.unmasking_share(alpha, later, sigma)
            assert -1e-12 <= share <= 1 + 1e-12
            assert 0 <= sigma <= 1
            assert alpha * (1 - sigma) + (1 - alpha) * share == pytest.approx(later)


def test_a_loop_stays_where_the_paper_says(baselines):
    plan = baselines.remasking_plan("loop", 20, 0.02)
    loop = [(alpha, later, sigma) for alpha, later, sigma in plan if sigma]
    assert loop == [(0.9, 0.9, 0.02)] * 10
    assert [sigma for _, _, sigma in plan[:9]] == [0.0] * 9
    assert plan[9:-1] == loop


def elbo(baselines: ModuleType, plan: list[tuple[float, float, float]]) -> float:
    """The bound of ReMDM by enumeration, nats for the pair."""
    total = 0.0
    for alpha, later, sigma in plan:
        for x, weight in zip(PAIRS.tolist(), PAIR.tolist(), strict=True):
            for masked in itertools.product((False, True), repeat=2):
                chance = math.prod(1 - alpha if m else alpha for m in masked)
                context = tuple(MASK if m else a for a, m in zip(x, masked, strict=True))
                probs = conditional(PAIR, PAIRS, context)
                cost = -sum(math.log(probs[i, x[i]]) for i in range(2) if masked[i])
                total += weight * chance * baselines.unmasking_share(alpha, later, sigma) * cost
    return total


def test_the_bound_of_remdm_is_one_and_tight_without_remasking(baselines):
    """Bound >= exact -log p of the sampler >= entropy; without remasking the bound falls to the entropy."""
    entropy = float(-(PAIR * PAIR.log()).sum())
    for strategy, eta in (("cap", 0.3), ("rescale", 0.5), ("rescale", 0.0), ("loop", 0.3)):
        plan = baselines.remasking_plan(strategy, 6, eta)
        exact = float(-(PAIR * remdm_law(plan, by_confidence=False).log()).sum())
        assert elbo(baselines, plan) >= exact >= entropy
    few, many = (elbo(baselines, baselines.remasking_plan("cap", calls, 0.0)) - entropy for calls in (4, 64))
    assert few > 10 * many > 0


def test_the_drawn_bound_of_remdm_is_the_enumerated_one(baselines):
    """And not that of a sampler without remasking."""
    plan = baselines.remasking_plan("rescale", 6, 0.5)
    tokens = PAIRS.repeat_interleave((PAIR * 20_000).round().long(), 0)
    network, generator = MaskedTable(PAIR, PAIRS), torch.Generator().manual_seed(0)
    found = baselines.remdm_bound(
        network, tokens, None, plan, codebook_size=CODES, generator=generator, batch_size=4000
    )
    expected = elbo(baselines, plan) / 2
    assert found == pytest.approx(expected, rel=0.02)
    assert abs(elbo(baselines, [(a, b, 0.0) for a, b, _ in plan]) / 2 - expected) > 0.1 * expected


def critic_law(baselines: ModuleType, calls: int) -> Tensor:
    """The law of the self-criticising sampler without noise on its scores: every combination of new tokens."""
    halves = [[0, 3], [1, 2]]  # Bayer order of 2 x 2: a diagonal, then the other
    rounds = calls // 2
    now = {(MASK,) * SITES: 1.0}
    left = SITES
    for r in range(rounds + 1):
        after: dict = defaultdict(float)
        left = (
            max(1, min(left, math.floor(SITES * math.cos(math.pi / 2 * (r + 1) / (rounds + 1))))) if r < rounds else 0
        )
        for tokens, chance in now.items():
            probs = conditional(LAW, STATES, tokens)
            open_sites = [i for i in range(SITES) if tokens[i] == MASK]
            for new in itertools.product(range(CODES), repeat=len(open_sites)):
                grid, scores, part = list(tokens), [math.inf] * SITES, chance
                for i, a in zip(open_sites, new, strict=True):
                    grid[i], scores[i] = a, float(probs[i, a].log())
                    part *= float(probs[i, a])
                if r < rounds and (calls % 2 or r):
                    half = halves[r % 2]
                    judged = conditional(LAW, STATES, tuple(MASK if i in half else a for i, a in enumerate(grid)))
                    for i in half:
                        scores[i] = float(judged[i, grid[i]].log())
                for i in sorted(range(SITES), key=lambda i: scores[i])[:left]:
                    grid[i] = MASK
                after[tuple(grid)] += part
        now = after
    law = torch.zeros(len(LAW)).double()
    for tokens, chance in now.items():
        law[int(state_numbers(torch.tensor([tokens]), CODES))] += chance
    return law


@pytest.mark.parametrize("calls", [1, 4, 5])
def test_the_critic_has_its_exactly_computed_law(baselines, calls):
    """Every combination of new tokens, and of the sites that are masked again."""
    network = MaskedTable(LAW, STATES)
    tokens = baselines.critic(network, calls, None, height=2, width=2, codebook_size=CODES, generators=seeded(DRAWS))
    assert network.calls == calls
    statistic, freedom = chi_square(tokens, critic_law(baselines, calls), CODES)
    assert critical(freedom, -3.7) < statistic < critical(freedom, 3.7)


def test_noise_on_the_scores_chooses_other_sites(baselines):
    """So much of it that the sites are random: then another law than without noise, and still tokens everywhere."""
    network = MaskedTable(LAW, STATES)
    arguments = {"height": 2, "width": 2, "codebook_size": CODES, "generators": seeded(4000)}
    noisy = baselines.critic(network, 5, None, confidence_noise=100.0, **arguments)
    assert int(noisy.max()) < CODES
    statistic, freedom = chi_square(noisy, critic_law(baselines, 5), CODES)
    assert statistic > critical(freedom, 6)
