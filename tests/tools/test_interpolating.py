"""GIDD and Duo against brute force: their chains, posteriors, bounds and laws by enumeration.

The joint is a Potts model of 2 x 2 sites; an exact network is a table. Chi-squares as in tests/sampler/test_sampler.py.
"""

import itertools
import math
import sys
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.enumeration import all_states, chi_square, critical, divergence, state_numbers
from tests.tools.small_joint import CODES, DRAWS, LAW, MASK, SITES, STATES, seeded

SEEN = all_states(SITES, CODES + 1)
"""Grids with masks."""
ENTROPY = float(-(LAW * LAW.log()).sum())


# One site of the two noise processes, written from the papers' formulas and apart from the package.


def parts(kind: str, t: float) -> tuple[float, Tensor]:
    """alpha_t, and beta_t pi_t of the codes and the mask."""
    flat = torch.tensor([1.0] * CODES + [0.0]).double() / CODES
    if kind == "duo":
        return 1 - t, t * flat
    uniform = 0.3
    c = 2 * uniform / (1 - uniform) * math.sqrt(t * (1 - t))
    return (1 - t) / (1 + c), (t * torch.eye(CODES + 1)[MASK].double() + c * flat) / (1 + c)


def marginal(kind: str, t: float) -> Tensor:
    """q_t(z | x), (x, z), both of codes and mask."""
    alpha, noise = parts(kind, t)
    return alpha * torch.eye(CODES + 1).double() + noise


def transition(kind: str, s: float, t: float) -> Tensor:
    """q(z_t | z_s), (z_s, z_t)."""
    (before, early), (after, late) = parts(kind, s), parts(kind, t)
    kept = after / before
    return kept * torch.eye(CODES + 1).double() + late - kept * early


def process_of(baselines: ModuleType, kind: str):
    return baselines.UniformState(CODES) if kind == "duo" else baselines.MaskUniform(CODES, 0.3)


def grids(one: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The product over the sites of a matrix of one site: (rows, columns) of grids."""
    return one[rows[:, None], columns[None]].prod(-1)


@lru_cache
def left_out(kind: str, t: float) -> Tensor:
    """P(x_0 at a site = a | z_t at the other sites), (z, l, v): what both bounds are least at."""
    one = marginal(kind, t)[STATES[:, None], SEEN[None]]  # (x, z, l)
    answers = []
    for i in range(SITES):
        others = [j for j in range(SITES) if j != i]
        weight = LAW[:, None] * one[..., others].prod(-1)
        found = torch.stack([(weight * (STATES[:, i] == a)[:, None]).sum(0) for a in range(CODES)], dim=-1)
        total = found.sum(-1, keepdim=True)
        # what cannot be seen at this time has no conditional
        answers.append(torch.where(total > 0, found / total, torch.full_like(found, 1 / CODES)))
    return torch.stack(answers, dim=1)


@lru_cache
def site_posterior(kind: str, t: float, s: float) -> Tensor:
    """P(z_s at a site = a | z_t), (z_t, l, v + 1), by summing the joint of z_s and z_t over all grids."""
    before = LAW @ grids(marginal(kind, s), STATES, SEEN)
    joint = before[:, None] * grids(transition(kind, s, t), SEEN, SEEN)
    total = joint.sum(0)
    given = torch.where(total > 0, joint / total, torch.zeros_like(joint))
    one_hot = torch.eye(CODES + 1).double()[SEEN]  # (z_s, l, v + 1)
    return torch.einsum("st,slv->tlv", given, one_hot)


TIMES = [(0.9, 0.6), (0.5, 0.2), (0.3, 0.0), (1.0, 0.7), (1.0, 0.0)]


@pytest.mark.parametrize("kind", ["gidd", "duo"])
def test_a_process_is_a_markov_chain_with_its_rates(baselines, kind):
    """Marginals compose, and a short step has the rates. Seen to fail with rates of d(code)/dt alone."""
    process = process_of(baselines, kind)
    for t in (0.05, 0.4, 0.8):
        q = process.at(torch.tensor(t).double())
        alpha, noise = parts(kind, t)
        assert float(q.alpha) == pytest.approx(alpha)
        assert [float(q.code)] * CODES + [float(q.mask)] == pytest.approx(noise.tolist())
        assert torch.allclose(marginal(kind, 0.5 * t) @ transition(kind, 0.5 * t, t), marginal(kind, t))
        short = 1e-6
        moved = transition(kind, t - short / 2, t + short / 2) / short
        rates = process.rates(torch.tensor(t).double())
        assert float(rates.code) == pytest.approx(float(moved[0, 1]), rel=1e-5)
        assert float(rates.mask) == pytest.approx(float(moved[0, MASK]), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("kind", ["gidd", "duo"])
@pytest.mark.parametrize(("t", "s"), TIMES)
def test_the_plug_in_step_is_bayes_rule_at_the_best_answer(baselines, kind, t, s):
    """Of every site, given all of z_t. Seen to fail with q_t in the place of q_s, and with kept = alpha_t."""
    found = baselines.plug_in_step(process_of(baselines, kind), left_out(kind, t).log(), SEEN, t, s)
    possible = LAW @ grids(marginal(kind, t), STATES, SEEN) > 0
    found = (found / found.sum(-1, keepdim=True))[possible]
    assert torch.allclose(found, site_posterior(kind, t, s)[possible], atol=1e-12)


def costs(baselines: ModuleType, kind: str, t: float, log_clean: Tensor) -> Tensor:
    """The mean over x and z of the cost of all sites."""
    joint = LAW[:, None] * grids(marginal(kind, t), STATES, SEEN)
    x, z = joint.nonzero().T  # Duo has no masks
    time = torch.full((len(x) * SITES,), t, dtype=torch.float64)
    process = process_of(baselines, kind)
    cost = baselines.interpolating_cost(
        process, log_clean[z].flatten(0, 1), SEEN[z].flatten(), STATES[x].flatten(), time
    )
    return (joint[x, z] * cost.view(-1, SITES).sum(-1)).sum()


@pytest.mark.parametrize("kind", ["gidd", "duo"])
def test_the_cost_is_least_at_the_best_answer(baselines, kind):
    """No gradient there, and more in every direction tried."""
    t = 0.4
    logits = left_out(kind, t).log().requires_grad_()
    least = costs(baselines, kind, t, logits.log_softmax(-1))
    (gradient,) = torch.autograd.grad(least, logits)
    assert gradient.abs().max() < 1e-12
    for seed in range(3):
        shift = 0.1 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed)).double()
        assert costs(baselines, kind, t, (logits + shift).log_softmax(-1)) > least


@pytest.mark.parametrize("kind", ["gidd", "duo"])
def test_the_integral_of_the_cost_is_the_entropy(baselines, kind):
    """Tight for the exact network, and above the entropy for others.

    Seen to fail without r - log r - 1, and with weights that leave out the division by q_t(z | x).
    """
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(32))
    exact, other = 0.0, 0.0
    for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        t = float(node**3 * (10 - 15 * node + 6 * node**2))
        step = float(weight * 30 * node**2 * (1 - node) ** 2)
        table = left_out(kind, t)
        exact += step * float(costs(baselines, kind, t, table.log()))
        other += step * float(costs(baselines, kind, t, (0.7 * table + 0.3 / CODES).log()))
    assert exact == pytest.approx(ENTROPY, rel=1e-4)
    assert other > ENTROPY + 0.02


def table_of(kind: str) -> Callable[..., Tensor]:
    """The exact network: told 1 - t, float32."""

    def network(tokens: Tensor, levels: Tensor, sites: Tensor, labels: Tensor | None) -> Tensor:
        answers = left_out(kind, round(1 - float(levels[0, 0]), 6))
        return answers[state_numbers(tokens, CODES + 1)][:, sites].log()

    return network


@pytest.mark.parametrize("kind", ["gidd", "duo"])
def test_the_sampled_bound_of_independent_sites_is_their_cross_entropy(baselines, kind):
    """An answer that depends on nothing is exact for its own law, and the bound is -log of that, for any tokens.

    Seen to fail without the density of the times.
    """
    counts, generator = torch.tensor([140_000, 50_000, 10_000]), torch.Generator().manual_seed(0)
    tokens = torch.arange(CODES).repeat_interleave(counts)[torch.randperm(200_000, generator=generator)].view(-1, 2)
    for answer in ((0.7, 0.25, 0.05), (0.3, 0.3, 0.4)):
        log_answer = torch.tensor(answer).double().log()

        def log_clean(z: Tensor, levels: Tensor, labels: Tensor | None, log_answer: Tensor = log_answer) -> Tensor:
            return log_answer.expand(*z.shape, CODES)

        process = process_of(baselines, kind)
        found = baselines.interpolating_bound(log_clean, process, tokens, None, generator=generator, batch_size=10_000)
        assert found == pytest.approx(float(-(counts / 200_000 * log_answer).sum()), rel=0.02)


def ancestral_law(kind: str, times: list[float], *, greedy: bool = False) -> Tensor:
    """The law over grids with masks of drawing every site from its posterior, all at once."""
    now = parts(kind, times[0])[1][SEEN].prod(1)
    for t, s in pairwise(times):
        posterior = site_posterior(kind, t, s)
        if greedy and s == 0:
            posterior = torch.eye(CODES + 1).double()[posterior.argmax(-1)]
        step = posterior.gather(2, SEEN.T[None].expand(len(SEEN), -1, -1)).prod(1)
        now = now @ step
    return now


def corrected_law(now: Tensor, count: int) -> Tensor:
    """One self-correction of GIDD: every combination of new tokens, of which the likeliest that differ are taken."""
    answers = left_out("gidd", 0.01)
    later = torch.zeros_like(now)
    for number in now.nonzero()[:, 0].tolist():
        probs = answers[number]
        for new in itertools.product(range(CODES), repeat=SITES):
            chance = math.prod(float(probs[i, a]) for i, a in enumerate(new))
            old = SEEN[number].tolist()
            differ = sorted((i for i in range(SITES) if new[i] != old[i]), key=lambda i: -float(probs[i, new[i]]))
            for i in differ[:count]:
                old[i] = new[i]
            later[int(state_numbers(torch.tensor([old]), CODES + 1))] += now[number] * chance
    return later


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("gidd", {}),
        ("gidd", {"corrections": 1, "corrected": 2}),
        ("duo", {}),
        ("duo", {"greedy": True, "curve": "cosine"}),
    ],
)
def test_ancestral_sampling_has_its_exactly_computed_law(baselines, kind, arguments):
    """Chi-square against the product of posteriors, step after step.

    Seen to fail with the answers of the time before, without the greedy tail, and with one token corrected of two.
    """
    curve = baselines.CURVES[arguments.get("curve", "linear")]
    times = [curve(n / 3) for n in range(3)] + [0.0]
    expected = ancestral_law(kind, [1.0, *(round(t, 6) for t in times[1:])], greedy=arguments.get("greedy", False))
    if "corrections" in arguments:
        before, expected = expected, corrected_law(expected, 2)
        assert DRAWS * divergence(before, expected) > 150
    tokens = baselines.ancestral(
        table_of(kind), process_of(baselines, kind), 3, None, sites=SITES, generators=seeded(DRAWS), **arguments
    )
    assert int(tokens.max()) < CODES
    statistic, freedom = chi_square(tokens, expected, CODES + 1)
    assert critical(freedom, -3.7) < statistic < critical(freedom, 3.7)


def test_ancestral_sampling_nears_the_joint_with_more_steps(baselines):
    def far(kind: str, steps: int) -> float:
        found = ancestral_law(kind, [1 - n / steps for n in range(steps)] + [0.0])
        codes = found[(SEEN < MASK).all(1)]
        return float((LAW * (LAW / codes).log()).sum())

    for kind in ("gidd", "duo"):
        two, eight = far(kind, 2), far(kind, 8)
        assert two > 2 * eight > 0


def test_dynamic_weights_have_the_proportions_of_the_bound(baselines):
    """Masked to noisy 2 to 1 exactly; clean sites nearly, where there is little uniform noise."""
    module = sys.modules["baselines.interpolating"]
    process, t = baselines.MaskUniform(CODES, 0.01), torch.full((3,), 0.4, dtype=torch.float64)
    z, x_0 = torch.tensor([MASK, 1, 0]), torch.zeros(3, dtype=torch.long)
    q, rates = process.at(t), process.rates(t)
    full = torch.stack([rates.mask[0] / q.mask[0], rates.code[0] / q.code[0], (rates.code / (q.alpha + q.code))[0]])
    found = module.dynamic_weights(process, z, x_0, t)
    assert found[:2].tolist() == [2.0, 1.0]
    assert (full / full[1]).tolist() == pytest.approx(found.tolist(), rel=0.02)


@pytest.mark.parametrize("kind", ["gidd", "duo"])
def test_training_shows_tokens_of_the_process(baselines, kind):
    """Seen to fail with alpha in the place of alpha / (1 - mask)."""
    generator = torch.Generator().manual_seed(0)
    process = process_of(baselines, kind)
    trainer = SimpleNamespace(
        noise_generator=generator,
        process=lambda: process,
        config=SimpleNamespace(network=SimpleNamespace(codebook_size=CODES)),
        add_noise=lambda x, level: torch.where(
            torch.rand(x.shape, generator=generator) < level, x, torch.randint(CODES, x.shape, generator=generator)
        ),
    )
    x_0 = torch.ones(400, 250, dtype=torch.long)
    z, levels = baselines.GIDDTrainer.corrupt(trainer, x_0, None)
    q = process.at(1 - levels.double())
    for token, chance in ((1, q.alpha + q.code), (0, q.code), (MASK, q.mask)):
        counted, hoped = (z == token).sum(1).double(), chance[:, 0] * 250
        spread = (chance[:, 0] * (1 - chance[:, 0]) * 250).sum().sqrt()
        assert abs(float((counted - hoped).sum())) <= 4 * float(spread)
        halves = ((counted - hoped) * (levels[:, 0] - 0.5).sign()).sum()
        assert abs(float(halves)) <= 4 * float(spread)
