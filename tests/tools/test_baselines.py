"""Every rival against brute force: its loss has the minimiser that its paper says, its sampler the law that follows.

The joint is a 2 x 2 Potts model; an exact network is a table. Chi-squares as in tests/sampler/test_sampler.py.
"""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from ggm_image.sampler import sample_signal
from ggm_image.schedule import order_sites
from tests.enumeration import ExactDenoiser, chi_square, critical, divergence, kl, noised, state_numbers
from tests.tools.small_joint import CODES, LAW, SITES, STATES, seeded

NOISE = torch.full((CODES,), 1 / CODES, dtype=torch.float64)
DRAWS = 100_000


def transitions(before: float, after: float) -> Tensor:
    """q(x_t | x_s), (s, t): every site keeps its token with probability after / before, else uniform noise."""
    keep = after / before
    one = keep * torch.eye(CODES).double() + (1 - keep) / CODES
    return one[STATES[:, None, :], STATES[None, :, :]].prod(-1)


def site_posterior(level: float, next_level: float) -> Tensor:
    """P(x_s at a site = a | x_t), (t, l, v), by summing the joint of x_s and x_t over all grids."""
    before = noised(LAW, torch.full((SITES,), next_level, dtype=torch.float64), NOISE, CODES)
    joint = before[:, None] * transitions(next_level, level)  # (s, t)
    given = joint / joint.sum(0)
    return torch.stack([(given.T[:, :, None] * one).sum(1) for one in torch.eye(CODES).double()[STATES.T]], dim=1)


def clean_posterior(level: float) -> Tensor:
    """P(x_0 at a site = a | x_t): D3PM's exact network, (t, l, v)."""
    return site_posterior(level, 1.0)


def exact_log_score(level: float) -> Tensor:
    """log p_t(x_t with a at the site) / p_t(x_t): SEDD's exact network, (t, l, v)."""
    law = noised(LAW, torch.full((SITES,), level, dtype=torch.float64), NOISE, CODES)
    moved = STATES[:, None, None, :].repeat(1, SITES, CODES, 1)
    for i in range(SITES):
        moved[:, i, :, i] = torch.arange(CODES)
    return (law[state_numbers(moved.flatten(0, 2), CODES)].view(len(law), SITES, CODES) / law[:, None, None]).log()


class Table:
    """A network that knows the answer for every grid at every level."""

    def __init__(self, samples) -> None:
        self.answers, self.known = samples, {}

    def __call__(self, tokens: Tensor, levels: Tensor, sites: Tensor, labels: Tensor | None) -> Tensor:
        level = float(levels[0, 0])
        if level not in self.known:
            self.known[level] = self.answers(level)
        return self.known[level][state_numbers(tokens, CODES)][:, sites]


def tau_leap_law(grid: list[float]) -> Tensor:
    """The law of drawing every site from its exact posterior, all at once, level after level; from pure noise."""
    now = torch.full_like(LAW, 1 / len(LAW))
    for level, next_level in pairwise(grid):
        posterior = site_posterior(level, next_level)  # (t, l, v)
        step = posterior.gather(2, STATES.T[None].expand(len(LAW), -1, -1)).prod(1)  # (t, s)
        now = now @ step
    return now


@pytest.mark.parametrize(("level", "next_level"), [(0.2, 0.5), (0.5, 0.9), (0.7, 1.0), (1e-3, 0.4)])
def test_both_steps_are_the_exact_posterior_of_every_site(baselines, level, next_level):
    """D3PM's from P(x_0 | x_t), SEDD's from ratios of p_t: the same numbers.

    Seen to fail with keep = level, without the division by q(x_t | x_0), and with the ratios taken as those of x_s.
    """
    expected = site_posterior(level, next_level)
    d3pm = baselines.d3pm_step(clean_posterior(level).log(), STATES, level, next_level)
    sedd = baselines.sedd_step(exact_log_score(level), STATES, level, next_level)
    assert torch.allclose(d3pm, expected, atol=1e-12)
    assert torch.allclose(sedd, expected, atol=1e-9)
    implied = baselines.d3pm_log_score(clean_posterior(level).log(), STATES, level)
    assert torch.allclose(implied, exact_log_score(level), atol=1e-9)


@pytest.mark.parametrize("name", ["d3pm", "sedd"])
def test_tau_leaping_has_its_exactly_computed_law(baselines, name):
    """Chi-square against the product of posteriors, step after step; the joint itself is told apart.

    Seen to fail with the new tokens drawn at the level before the step, and with one uniform number for all steps.
    """
    samples = {"d3pm": lambda a: clean_posterior(a).log(), "sedd": exact_log_score}[name]
    step = getattr(baselines, f"{name}_step")
    grid = [0.02, *(baselines.CURVES["cosine"](1 - n / 3) for n in (1, 2)), 1.0]
    expected = tau_leap_law([torch.tensor(a).item() for a in grid])
    assert DRAWS * divergence(LAW, expected) > 150
    tokens = baselines.tau_leap(
        Table(samples), step, 3, None, sites=SITES, codebook_size=CODES, generators=seeded(DRAWS), first_level=0.02
    )
    statistic, freedom = chi_square(tokens, expected, CODES)
    assert critical(freedom, -3.7) < statistic < critical(freedom, 3.7)


def test_tau_leaping_nears_the_joint_with_more_steps(baselines):
    """KL(joint || law) by enumeration: 4, 16 and 64 steps."""

    def divergence_of(steps: int) -> float:
        curve = baselines.CURVES["cosine"]
        return kl(LAW, tau_leap_law([max(1e-6, curve(1 - n / steps)) for n in range(steps)] + [1.0]))

    four, sixteen, many = map(divergence_of, (4, 16, 64))
    assert four > 3 * sixteen > 9 * many > 0


@pytest.mark.parametrize("level", [0.1, 0.6, 0.95])
def test_score_entropy_is_least_at_the_exact_ratios(baselines, level):
    """The mean over x_0 and x_t has no gradient there, and grows in every direction tried.

    Seen to fail with r(x_0) = level / low and with the ratio of x_t = x_0 upside down.
    """
    joint = LAW[:, None] * transitions(1.0, level)  # (0, t)
    log_score = exact_log_score(level).requires_grad_()
    pairs = torch.cartesian_prod(torch.arange(len(LAW)), torch.arange(len(LAW)))

    def mean(table: Tensor) -> Tensor:
        cost = baselines.score_entropy(
            table[pairs[:, 1]].flatten(0, 1),
            STATES[pairs[:, 1]].flatten(),
            STATES[pairs[:, 0]].flatten(),
            torch.full((len(pairs) * SITES,), level, dtype=torch.float64),
        )
        return (joint.flatten()[:, None] * cost.view(-1, SITES)).sum()

    least = mean(log_score)
    (gradient,) = torch.autograd.grad(least, log_score)
    assert gradient.abs().max() < 1e-12
    for seed in range(5):
        shift = 0.1 * torch.randn(log_score.shape, generator=torch.Generator().manual_seed(seed)).double()
        assert mean(log_score + shift) > least


def test_the_integral_of_the_score_entropy_is_the_entropy(baselines):
    """With exact ratios the bound on -log p(x_0) is tight: its mean is the entropy of the joint.

    Seen to fail with the weight 1 in place of 1/level, and without the term of r alone.
    """
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(60))
    total = torch.zeros(()).double()
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        # levels in (0, 1), denser at both ends
        level = float(node**2 * (3 - 2 * node))
        joint = LAW[:, None] * transitions(1.0, level)
        table = exact_log_score(level)
        rows = torch.cartesian_prod(torch.arange(len(LAW)), torch.arange(len(LAW)))
        cost = baselines.score_entropy(
            table[rows[:, 1]].flatten(0, 1),
            STATES[rows[:, 1]].flatten(),
            STATES[rows[:, 0]].flatten(),
            torch.full((len(rows) * SITES,), level, dtype=torch.float64),
        )
        total += weight * 6 * node * (1 - node) * (joint.flatten()[:, None] * cost.view(-1, SITES)).sum()
    entropy = -(LAW * LAW.log()).sum()
    assert float(total) == pytest.approx(float(entropy), rel=1e-6)


def test_halton_order_one_site_a_call_reproduces_the_joint(baselines):
    """And with fewer calls than sites it does not. Seen to fail with the placed sites masked again."""
    denoiser = ExactDenoiser(LAW, SITES, CODES, NOISE)
    arguments = {"height": 2, "width": 2, "codebook_size": CODES, "generators": seeded(DRAWS)}
    tokens = baselines.halton(denoiser, SITES, None, **arguments)
    assert denoiser.calls == SITES
    statistic, freedom = chi_square(tokens, LAW, CODES)
    assert critical(freedom, -3.7) < statistic < critical(freedom, 3.7)
    arguments["generators"] = seeded(DRAWS)
    statistic, freedom = chi_square(baselines.halton(denoiser, 1, None, **arguments), LAW, CODES)
    assert statistic > critical(freedom, 20)


@pytest.mark.parametrize("calls", [1, 5, 16, 64, 100])
def test_halton_is_our_sampler_without_revision(baselines, calls):
    def network(tokens, levels, sites, labels):
        return (tokens.sum(1)[:, None, None] * torch.arange(7) + sites[:, None] * torch.arange(7)).sin().double()

    arguments = {"height": 8, "width": 8, "codebook_size": 7}
    theirs = baselines.halton(network, calls, None, generators=seeded(5), **arguments)
    ours = sample_signal(network, 5, calls=calls, first_order="halton", generator=seeded(5), **arguments)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("calls", [1, 5, 16, 64, 100])
def test_halton_places_every_site_once_in_its_order_by_the_cosine_law(baselines, calls):
    asked = []

    def network(tokens, levels, sites, labels):
        assert bool((tokens[:, sites] == 7).all())
        assert torch.equal(levels, (tokens != 7).float())
        asked.append(sites)
        return torch.zeros(len(tokens), len(sites), 7)

    tokens = baselines.halton(network, calls, None, height=8, width=8, codebook_size=7, generators=seeded(2))
    assert torch.equal(torch.cat(asked), order_sites(8, 8, "halton"))
    assert len(asked) == min(calls, 64)
    assert int(tokens.max()) < 7
    sizes = [len(sites) for sites in asked]
    assert sizes == sorted(sizes) or calls > 16  # few first, many last; one at least


def test_tau_leaping_asks_for_every_site_at_rising_levels(baselines):
    levels_seen = []

    def network(tokens, levels, sites, labels):
        assert len(sites) == 16
        assert bool((levels == levels[0, 0]).all())
        levels_seen.append(float(levels[0, 0]))
        return torch.zeros(len(tokens), 16, 5)

    for step in (baselines.d3pm_step, baselines.sedd_step):
        levels_seen.clear()
        tokens = baselines.tau_leap(network, step, 6, None, sites=16, codebook_size=5, generators=seeded(3))
        assert levels_seen == sorted(levels_seen)
        assert len(set(levels_seen)) == 6
        assert tokens.shape == (3, 16)
        assert 0 <= int(tokens.min()) <= int(tokens.max()) < 5


def entropy_a_site() -> float:
    return float(-(LAW * LAW.log()).sum()) / SITES


def draws_of_the_joint(count: int) -> Tensor:
    """Grids in the joint's own shares, as nearly as ``count`` allows; the error is below 1e-4 of the entropy."""
    return STATES.repeat_interleave((LAW * count).round().long(), 0)


def test_any_order_bound_of_the_exact_network_is_the_entropy(baselines):
    """Seen to fail with all sites masked every time, and with the levels of the masked state left out (power below)."""
    tokens = draws_of_the_joint(20_000)
    network = ExactDenoiser(LAW, SITES, CODES, NOISE)
    arguments = {"codebook_size": CODES, "batch_size": 100}
    found = [
        baselines.any_order_bound(
            network, tokens[torch.randperm(len(tokens))], None, generator=torch.Generator().manual_seed(k), **arguments
        )
        for k in range(2)
    ]
    assert found == pytest.approx([entropy_a_site()] * 2, rel=0.02)


def test_score_bound_of_the_exact_ratios_is_the_entropy(baselines):
    """Seen to fail without the density of the levels."""
    tokens = draws_of_the_joint(4_000)

    def log_score(x_t: Tensor, levels: Tensor, labels: Tensor | None) -> Tensor:
        rows = zip(state_numbers(x_t, CODES).tolist(), levels[:, 0].tolist(), strict=True)
        return torch.stack([exact_log_score(level)[number] for number, level in rows])

    found = baselines.score_bound(
        log_score, tokens, None, codebook_size=CODES, generator=torch.Generator().manual_seed(0)
    )
    assert found == pytest.approx(entropy_a_site(), rel=0.03)
