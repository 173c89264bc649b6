"""The posterior of prior and likelihood by enumeration, and the two limits of the likelihood."""

import pytest
import torch

from ggm_image.errors import UserError
from ggm_image.sampler import guided, sample, sample_signal, truncated
from ggm_image.sampler.observation import latent_log_likelihood
from ggm_image.schedule import Schedule
from tests.enumeration import ExactDenoiser, all_states, chi_square, critical, divergence, exact_law, kl, potts

DRAWS = 100_000
CODES, SITES = 2, 4
UNIFORM = torch.full((CODES,), 0.5, dtype=torch.float64)
LAW = potts(2, 2, CODES, 0.8)
OBSERVATION = torch.tensor([[0.0, -1.0], [-0.5, 0.0], [0.0, -2.0], [-1.5, 0.0]], dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def posterior(known=None):
    states = all_states(SITES, CODES)
    weight = LAW * OBSERVATION[torch.arange(SITES), states].sum(1).exp()
    if known is not None:
        weight = torch.where(((known < 0) | (states == known)).all(1), weight, 0.0)
    return weight / weight.sum()


def assert_fits(tokens, law):
    statistic, freedom = chi_square(tokens, law, CODES)
    assert critical(freedom, -3.7) < statistic < critical(freedom, 3.7), (statistic, freedom)


def gibbs(sweeps):
    """One sweep from noise, then sweeps at level 1: plain Gibbs sampling."""
    return Schedule.round_robin(2, 2, sweeps=sweeps, curve=lambda u: float(u < 1))


def test_the_stationary_law_is_the_exact_posterior():
    # seen to fail with the likelihood squared, and with that of another site
    schedule = gibbs(9)
    law = exact_law(schedule, LAW, UNIFORM, CODES, observation=OBSERVATION)
    assert kl(posterior(), law) < 1e-6
    assert kl(posterior(), exact_law(gibbs(1), LAW, UNIFORM, CODES, observation=OBSERVATION)) > 1e-3
    assert DRAWS * divergence(LAW, posterior()) > 150
    observed = OBSERVATION.expand(DRAWS, -1, -1)
    denoiser = ExactDenoiser(LAW, SITES, CODES, UNIFORM)
    tokens = sample(denoiser, schedule, DRAWS, codebook_size=CODES, observation=observed, generator=seeded())
    assert_fits(tokens, posterior())


def test_noisy_levels_follow_their_exactly_computed_law():
    schedule = Schedule.round_robin(2, 2, sweeps=2, block=2)
    expected = exact_law(schedule, LAW, UNIFORM, CODES, observation=OBSERVATION)
    observed = OBSERVATION.expand(DRAWS, -1, -1)
    denoiser = ExactDenoiser(LAW, SITES, CODES, UNIFORM)
    tokens = sample(denoiser, schedule, DRAWS, codebook_size=CODES, observation=observed, generator=seeded(1))
    assert_fits(tokens, expected)


def test_infilling_and_revision_reach_the_conditional_posterior():
    # rows of two patterns: seen to fail when `rows` kept the observation of the whole batch
    patterns = torch.tensor([[1, -1, -1, -1], [-1, -1, 0, -1]])
    known = patterns.repeat_interleave(DRAWS, 0)
    denoiser, observed = ExactDenoiser(LAW, SITES, CODES, UNIFORM), OBSERVATION.expand(2 * DRAWS, -1, -1)
    options = {"height": 2, "width": 2, "codebook_size": CODES, "calls": 3, "first_order": "bayer", "known": known}
    options |= {"block": 1, "revise_calls": 18, "revise_share": 1.0}
    tokens = sample_signal(denoiser, 2 * DRAWS, observation=observed, generator=seeded(2), **options)
    for pattern, part in zip(patterns, tokens.split(DRAWS), strict=True):
        assert_fits(part, posterior(pattern))


def test_a_guide_that_covers_a_part_reaches_the_posterior_of_that_part():
    """Colour hints: two of four sites are observed, one of them by half; the others follow the prior alone."""
    distances = torch.tensor([[[0.5, 1.5], [2.0, 0.2], [9.0, 0.0], [0.0, 9.0]]], dtype=torch.float64)
    weight = torch.tensor([[1.0, 0.5, 0.0, 0.0]], dtype=torch.float64)
    tau = 0.8
    d = 0.2  # the lower median of 0.5 and 0.2: sites that are not observed do not count
    states = all_states(SITES, CODES)
    energy = distances[0, 0, states[:, 0]] + 0.5 * distances[0, 1, states[:, 1]]
    law = LAW * torch.exp(-energy / (tau * d))
    law = law / law.sum()
    observation = latent_log_likelihood(distances, tau, weight)
    assert kl(law, exact_law(gibbs(9), LAW, UNIFORM, CODES, observation=observation[0])) < 1e-6
    everywhere = latent_log_likelihood(distances, tau)
    assert kl(law, exact_law(gibbs(9), LAW, UNIFORM, CODES, observation=everywhere[0])) > 1e-2
    denoiser, observed = ExactDenoiser(LAW, SITES, CODES, UNIFORM), observation.expand(DRAWS, -1, -1)
    options = {"codebook_size": CODES, "observation": observed, "generator": seeded(3)}
    assert_fits(sample(denoiser, gibbs(9), DRAWS, **options), law)


def test_weights_of_a_partial_observation():
    distances = torch.rand(2, 5, 8, generator=seeded()) + 0.1
    assert torch.equal(latent_log_likelihood(distances, 0.7, torch.ones(2, 5)), latent_log_likelihood(distances, 0.7))
    assert torch.equal(latent_log_likelihood(distances, 1e-44, torch.zeros(2, 5)), torch.zeros(2, 5, 8))
    weight = torch.tensor([[1.0, 1.0, 0.0, 1.0, 0.0]])
    found = latent_log_likelihood(distances[:1], 1e-44, weight)
    assert torch.equal(found[0, 2], torch.zeros(8))
    assert torch.equal(found[0, 0].argmax(), distances[0, 0].argmin())
    assert float(found[0, 0].exp().sum()) == 1


class Table:
    """Logits that depend on the tokens, in a precision of one's choice."""

    def __init__(self, codes: int, dtype: torch.dtype) -> None:
        self.logits = 2 * torch.randn(4096, codes, generator=seeded(), dtype=torch.float64).to(dtype)

    def __call__(self, tokens, levels, sites, labels):
        question = (tokens * torch.arange(1, tokens.shape[1] + 1) ** 2).sum(1, keepdim=True)
        return self.logits[(question + 7 * sites.expand(len(tokens), -1) + 1001 * labels[:, None]) % 4096]


def draw(which, dtype, observation):
    labels = torch.arange(3)
    denoiser = truncated(guided(Table(8, dtype), 3.0, 3), temperature=0.9, top_k=5, top_p=0.9)
    options = {"codebook_size": 8, "labels": labels, "observation": observation}
    options["generator"] = [seeded(k) for k in range(3)]
    if which == "schedule":
        return sample(denoiser, Schedule.round_robin(4, 4, sweeps=2, block=3), 3, **options)
    return sample_signal(denoiser, 3, height=4, width=4, calls=4, revise_calls=4, first_order=which, **options)


@pytest.mark.parametrize("which", ["schedule", "signal", "halton"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_a_flat_likelihood_leaves_the_prior_bit_for_bit(which, dtype):
    assert torch.equal(draw(which, dtype, torch.zeros(3, 16, 8)), draw(which, dtype, None))
    assert not torch.equal(draw(which, dtype, torch.randn(3, 16, 8, generator=seeded())), draw(which, dtype, None))


@pytest.mark.parametrize("which", ["schedule", "signal", "halton"])
@pytest.mark.parametrize("tau", [1e-6, 1e-44])
def test_a_small_tau_is_the_nearest_code(which, tau):
    distances = torch.rand(3, 16, 8, generator=seeded()) + 0.1
    likelihood = latent_log_likelihood(distances, tau)
    tokens = sample_signal if which != "schedule" else sample
    options = {"codebook_size": 8, "observation": likelihood, "generator": seeded(), "labels": torch.zeros(3).long()}
    if which == "schedule":
        found = tokens(Table(8, torch.float32), Schedule.round_robin(4, 4, sweeps=1), 3, **options)
    else:
        found = tokens(Table(8, torch.float32), 3, height=4, width=4, calls=4, first_order=which, **options)
    assert torch.equal(found, distances.argmin(-1))


def test_the_likelihood_of_latents():
    distances = torch.tensor([[[1.0, 3.0], [4.0, 2.0], [9.0, 5.0]], [[0.0, 1.0], [0.0, 1.0], [2.0, 0.0]]])
    found = latent_log_likelihood(distances, 0.5)
    assert torch.equal(found[0], torch.tensor([[0.0, -2.0], [-2.0, 0.0], [-4.0, 0.0]]))  # d = 2
    assert torch.equal(found[1].argmax(-1), torch.tensor([0, 0, 1]))
    assert bool((found[1].exp() == torch.tensor([[1, 0], [1, 0], [0, 1]])).all())  # d = 0: the nearest code
    assert torch.equal(latent_log_likelihood(distances[:1], 0.5), found[:1])
    for tau in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="tau"):
            latent_log_likelihood(distances, tau)


@pytest.mark.usefixtures("unchecked_shapes")
def test_an_observation_that_does_not_fit_is_refused():
    for wrong in (torch.zeros(3, 16, 7), torch.zeros(16, 8), torch.zeros(3, 16, 8).long()):
        with pytest.raises(UserError, match=r"pass \(3, 16, 8\)"):
            draw("schedule", torch.float32, wrong)
    with pytest.raises(UserError, match="finite"):
        draw("schedule", torch.float32, torch.full((3, 16, 8), torch.nan))
    with pytest.raises(UserError, match="no distribution"):
        draw("schedule", torch.float32, torch.full((3, 16, 8), -torch.inf))
