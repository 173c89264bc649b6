"""The samplers with a perfect denoiser against exactly computed laws.

Every chi-square is made of 100,000 or more samples at a fixed seed, accepted between the normal quantiles -3.7
and 3.7 (two-sided level 2e-4). Beside each stands the shift that named mistakes would cause, computed
exactly, so the power is known: a shift of 150 at 63 degrees of freedom is found with probability > 0.999.
"""

from itertools import pairwise

import pytest
import torch

from ggm_image.sampler import sample, sample_signal
from ggm_image.schedule import Schedule
from tests.enumeration import ExactDenoiser, all_states, chi_square, critical, divergence, exact_law, kl, potts
from tests.sampler.recorder import seeded

DRAWS = 100_000
UNIFORM2 = torch.full((2,), 0.5, dtype=torch.float64)
SKEWED2 = torch.tensor([0.7, 0.3], dtype=torch.float64)


def assert_fits(tokens, law, codes):
    statistic, freedom = chi_square(tokens, law, codes)
    assert critical(freedom, -3.7) < statistic < critical(freedom, 3.7), (statistic, freedom)


@pytest.mark.parametrize("sweeps", [1, 3])
@pytest.mark.parametrize("noise", [UNIFORM2, SKEWED2], ids=["uniform", "skewed"])
def test_one_site_a_step_reproduces_the_joint(sweeps, noise):
    # seen to fail with levels(t + 1) in place of levels(t), with level and 1 - level swapped in the heat
    # bath, and without the mask id
    law = potts(2, 3, 2, 0.8)
    schedule = Schedule.round_robin(2, 3, sweeps=sweeps)
    assert kl(law, exact_law(schedule, law, noise, 2)) < 1e-10
    for mistake in ("levels after the step", "level and 1-level swapped"):
        assert DRAWS * divergence(exact_law(schedule, law, noise, 2, mistake=mistake), law) > 150
    denoiser = ExactDenoiser(law, 6, 2, noise)
    tokens = sample(denoiser, schedule, DRAWS, codebook_size=2, noise=noise, generator=seeded())
    assert denoiser.calls == 6 * sweeps
    assert_fits(tokens, law, 2)


@pytest.mark.parametrize(("final_level", "noise"), [(0.0, UNIFORM2), (0.3, SKEWED2)], ids=["0", "0.3"])
def test_blocks_reproduce_the_exactly_computed_law(final_level, noise):
    # seen to fail with levels(t + 1), with contiguous blocks in the sampler's schedule, with a uniform start
    # (0.3), and when a block's sites were drawn one after the other with the new tokens in view
    law = potts(2, 3, 2, 1.0)
    schedule = Schedule.round_robin(2, 3, sweeps=2, block=2, final_level=final_level)
    expected = exact_law(schedule, law, noise, 2)
    assert DRAWS * divergence(law, expected) > 150  # a block update is not exact, and this test can tell
    mistakes = ["levels after the step", "level and 1-level swapped", *(["uniform start"] if final_level else [])]
    for mistake in mistakes:
        assert DRAWS * divergence(exact_law(schedule, law, noise, 2, mistake=mistake), expected) > 150, mistake
    contiguous = Schedule.round_robin(2, 3, sweeps=2, block=2, final_level=final_level, order=torch.arange(6))
    assert DRAWS * divergence(exact_law(contiguous, law, noise, 2), expected) > 150
    denoiser = ExactDenoiser(law, 6, 2, noise)
    tokens = sample(denoiser, schedule, DRAWS, codebook_size=2, noise=noise, generator=seeded(1))
    assert_fits(tokens, expected, 2)


def test_spread_blocks_beat_contiguous_ones_and_more_sweeps_beat_fewer():
    # KL(joint || law), computed exactly: the three facts that the sampler must keep.
    # seen to fail with a raster order in place of Bayer's
    law, noise = potts(3, 3, 2, 1.0), UNIFORM2

    def error(**options):
        schedule = Schedule.round_robin(3, 3, curve="cosine", final_level=0.1, **options)
        return kl(law, exact_law(schedule, law, noise, 2))

    spread = [error(sweeps=s, block=3) for s in (1, 2, 4, 8)]
    assert all(b < 0.6 * a for a, b in pairwise(spread)), spread
    for sweeps in (1, 2, 4):
        assert error(sweeps=sweeps, block=3, order=torch.arange(9)) > 1.5 * error(sweeps=sweeps, block=3)
    random = [error(sweeps=2, block=3, order=torch.randperm(9, generator=seeded(s))) for s in range(8)]
    assert error(sweeps=2, block=3) < sum(random) / 8


def test_infilling_reproduces_the_exact_conditional():
    # two patterns of known sites in one batch. Seen to fail when known sites kept level a_s in place of 1,
    # and when all rows were run on the union of the unknown sites
    law, codes = potts(2, 3, 2, 0.8), 2
    states = all_states(6, codes)
    patterns = torch.tensor([[1, -1, -1, 0, -1, -1], [-1, 0, -1, -1, -1, 1]])
    known = patterns.repeat_interleave(DRAWS, 0)[torch.randperm(2 * DRAWS, generator=seeded())]
    schedule = Schedule.round_robin(2, 3, sweeps=2)
    denoiser = ExactDenoiser(law, 6, codes, UNIFORM2)
    tokens = sample(denoiser, schedule, 2 * DRAWS, codebook_size=2, known=known, generator=seeded(2))
    assert denoiser.calls == 2 * 4 * 2  # two patterns, four unknown sites, two sweeps
    assert torch.equal(tokens[known >= 0], known[known >= 0])
    for pattern in patterns:
        fits = ((pattern < 0) | (states == pattern)).all(1)
        conditional = torch.where(fits, law, 0.0) / law[fits].sum()
        assert DRAWS * divergence(torch.where(fits, 1 / 16, 0.0).double(), conditional) > 150
        assert_fits(tokens[(known == pattern).all(1)], conditional, codes)


def test_a_fixed_first_order_one_site_a_call_reproduces_the_exact_conditional():
    # seen to fail with the order of the whole grid in place of that of the unknown sites
    law, known = potts(2, 3, 2, 1.0), torch.tensor([1, -1, -1, 0, -1, -1])
    fits = ((known < 0) | (all_states(6, 2) == known)).all(1)
    conditional = torch.where(fits, law, 0.0) / law[fits].sum()
    denoiser, rows = ExactDenoiser(law, 6, 2, UNIFORM2), known.expand(DRAWS, -1)
    options = {"height": 2, "width": 3, "codebook_size": 2, "calls": 4, "known": rows, "first_order": "halton"}
    assert_fits(sample_signal(denoiser, DRAWS, generator=seeded(), **options), conditional, 2)
    assert denoiser.calls == 4


def test_infilling_by_blocks_follows_its_exact_law():
    law, known = potts(2, 3, 2, 1.0), torch.tensor([1, -1, -1, 0, -1, -1])
    schedule = Schedule.round_robin(2, 3, sweeps=2, block=2)
    expected = exact_law(schedule.restricted(known < 0), law, UNIFORM2, 2, known=known)
    rows = known.expand(DRAWS, -1)
    denoiser = ExactDenoiser(law, 6, 2, UNIFORM2)
    tokens = sample(denoiser, schedule, DRAWS, codebook_size=2, known=rows, generator=seeded(3))
    assert_fits(tokens, expected, 2)
