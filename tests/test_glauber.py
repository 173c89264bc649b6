"""The heat bath, its log-odds and the forward noise, against enumeration."""

import pytest
import torch

from ggm_image.errors import UserError
from ggm_image.glauber import add_noise, heat_bath, heat_bath_probs, sample_codes, signal_logit, uniform_noise
from ggm_image.schedule import Schedule
from tests.enumeration import ExactDenoiser, all_states, critical, noised, potts

CODES = 3
NOISE = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def exact_question(levels: torch.Tensor, site: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """On a 2 x 2 grid: clean logits at the site for every state (N, V), the law of x_t, and the states."""
    law = potts(2, 2, CODES, 1.0)
    states = all_states(4, CODES)
    tokens = states.clone()
    tokens[:, site] = CODES
    logits = ExactDenoiser(law, 4, CODES, NOISE)(tokens, levels.expand(len(states), -1), torch.tensor([site]), None)
    return logits[:, 0], noised(law, levels, NOISE, CODES), states


def test_heat_bath_is_the_conditional_of_the_noised_law(generator):
    # seen to fail with level and 1 - level swapped in heat_bath_unchecked or heat_bath_probs
    levels = torch.rand(4, generator=generator).double()
    for site in range(4):
        logits, law, states = exact_question(levels, site)
        joint = law.view((CODES,) * 4)
        expected = (joint / joint.sum(site, keepdim=True)).flatten()
        probs = heat_bath(logits, levels[site], NOISE).exp()
        torch.testing.assert_close(heat_bath_probs(logits, levels[site : site + 1], NOISE), probs, rtol=1e-12, atol=0)
        torch.testing.assert_close(probs.gather(1, states[:, site, None])[:, 0], expected, rtol=1e-10, atol=0)
        torch.testing.assert_close(probs.sum(1), torch.ones(len(states)).double())


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_reduction_identity(keep, generator):
    # P(y, x_{t+1,i} = a, ctx) written out: phi leaves the token, any other draw replaces it by one from the
    # noise. seen to fail with keep and 1 - keep swapped, and without the division by the noise
    levels = torch.rand(4, generator=generator).double()
    for site in range(4):
        logits, law, states = exact_question(levels, site)
        joint = law.view((CODES,) * 4)
        signal = keep * joint
        shape = [-1 if d == site else 1 for d in range(4)]
        replaced = (1 - keep) * NOISE.view(shape) * joint.sum(site, keepdim=True)
        s = signal_logit(logits, levels[site], keep, NOISE)
        got = s.gather(1, states[:, site, None])[:, 0]
        torch.testing.assert_close(got, (signal / replaced).log().flatten())
        # read backwards: pi(a) exp(s(a)) is the conditional, up to a constant
        weights = NOISE * s.exp()
        conditional = heat_bath(logits, levels[site], NOISE).exp()
        torch.testing.assert_close(weights / weights.sum(1, keepdim=True), conditional)


@pytest.mark.parametrize("block", [1, 2, 4])
def test_forward_marginals_step_by_step(block):
    # seen to fail with levels counted after the step (visit <= position in Schedule.levels)
    law = potts(2, 3, CODES, 1.0)
    schedule = Schedule.round_robin(2, 3, sweeps=3, block=block, final_level=0.1, curve="cosine")
    now = law
    for t, step in enumerate(schedule.steps):
        closed = noised(law, schedule.levels(t).double(), NOISE, CODES)
        torch.testing.assert_close(closed, now, rtol=1e-5, atol=1e-9)
        one_step = torch.ones(6).double()
        one_step[step.sites] = step.keep
        now = noised(now, one_step, NOISE, CODES)
    torch.testing.assert_close(noised(law, schedule.levels(t + 1).double(), NOISE, CODES), now, rtol=1e-5, atol=1e-9)


def test_add_noise_draws_the_forward_marginals(generator):
    # 200,000 draws at each of 4 levels; a shift of 0.005 in one probability is found with power > 0.99.
    # seen to fail with `<` turned round, and with the noise drawn uniformly
    draws = 200_000
    x_0 = torch.tensor([0, 1, 2, 2])
    level = torch.tensor([0.0, 0.3, 0.9, 1.0])
    x_t = add_noise(x_0.expand(draws, -1), level.expand(draws, -1), NOISE, generator=generator)
    expected = level[:, None] * torch.eye(CODES)[x_0] + (1 - level[:, None]) * NOISE
    counts = torch.stack([torch.bincount(x_t[:, i], minlength=CODES) for i in range(4)])
    assert counts[3].tolist() == [0, 0, draws]
    statistic = ((counts - draws * expected)[:3] ** 2 / (draws * expected[:3])).sum()
    assert float(statistic) < critical(6, 3.1)
    assert float(statistic) > 0.1  # too good is wrong too


def test_add_noise_depends_on_its_generator_alone():
    x_0 = torch.randint(8, (3, 5), generator=torch.Generator().manual_seed(1))
    level = torch.full((3, 5), 0.5)

    def draw(seed: int) -> torch.Tensor:
        return add_noise(x_0, level, uniform_noise(8), generator=torch.Generator().manual_seed(seed))

    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    assert draw(0).dtype == x_0.dtype


def test_heat_bath_at_the_ends_of_the_range():
    logits = torch.tensor([[1e4, -1e4, 0.0], [-torch.inf, 0.0, 1.0]])
    noise = torch.tensor([0.0, 0.5, 0.5])
    clean = torch.log_softmax(logits, -1)
    torch.testing.assert_close(heat_bath(logits, 1.0, noise), clean)
    torch.testing.assert_close(heat_bath(logits, 0.0, noise), noise.log().expand(2, -1))
    half = heat_bath(logits, 0.5, noise)
    assert not bool(half.isnan().any())
    torch.testing.assert_close(half.logsumexp(-1), torch.zeros(2), atol=1e-6, rtol=0)
    assert half[1, 0] == -torch.inf  # neither the network nor the noise allows it
    # a rare code keeps its relative precision: exp(-40) would be lost next to 1 outside log space
    rare = heat_bath(torch.tensor([0.0, -40.0]), 1.0, uniform_noise(2))
    torch.testing.assert_close(rare[1], torch.tensor(-40.0))


def test_signal_logit_where_the_noise_or_keep_is_zero():
    logits, noise = torch.tensor([0.0, 0.0, -torch.inf]), torch.tensor([0.0, 1.0, 0.0])
    s = signal_logit(logits, 0.5, 0.25, noise)
    assert s[0] == torch.inf  # the noise never draws it: certainly signal
    torch.testing.assert_close(s[2], torch.logit(torch.tensor(0.25)))  # cannot occur: the prior
    assert bool((signal_logit(logits, 0.5, 0.0, noise)[1:] == -torch.inf).all())
    assert bool((signal_logit(logits, 0.5, 1.0, noise) == torch.inf).all())


@pytest.mark.parametrize(
    ("given", "result"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_arithmetic_is_float32_or_wider(given, result, generator):
    logits = torch.randn(4, 16, generator=generator).to(given)
    level = torch.rand(4, generator=generator)
    out = heat_bath(logits, level, uniform_noise(16))
    assert out.dtype == result
    torch.testing.assert_close(out, heat_bath(logits.to(result), level, uniform_noise(16)), rtol=0, atol=0)
    assert signal_logit(logits, level, 0.5, uniform_noise(16)).dtype == result


def test_levels_broadcast_over_leading_shapes(generator):
    logits = torch.randn(2, 5, 7, generator=generator)
    level = torch.rand(5, generator=generator)
    whole = heat_bath(logits, level, uniform_noise(7))
    for i in range(5):
        torch.testing.assert_close(whole[:, i], heat_bath(logits[:, i], float(level[i]), uniform_noise(7)))


def test_draw_codes_never_draws_what_has_no_probability():
    # seen to fail with right=False in searchsorted
    codes = 1000
    probs = torch.zeros(codes)
    probs[1::2] = 1 / 500  # every even code is impossible, the first one too
    edges = torch.arange(0, 500).double() / 500
    uniforms = torch.cat([edges, edges + 1e-12, torch.tensor([1 - 2**-53], dtype=torch.float64)])
    sampled = sample_codes(probs.log().expand(len(uniforms), -1), uniforms)
    assert bool((sampled % 2 == 1).all())
    assert sampled[-1] == 999
    only = torch.full((3, codes), -torch.inf)
    only[:, -2] = 0.0
    assert sample_codes(only, torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)).tolist() == [998] * 3


def test_draw_codes_reaches_rare_codes():
    # seen to fail with a float32 cumulative sum, in which 1e-9 vanishes beside 1
    log_probs = torch.tensor([1.0, 1e-9]).log().expand(2, -1)
    uniforms = torch.tensor([1 - 1e-8, 1 - 1e-10], dtype=torch.float64)
    assert sample_codes(log_probs, uniforms).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: heat_bath(torch.zeros(2, 3), 0.5, uniform_noise(4)), "one probability a code"),
        (lambda: heat_bath(torch.zeros(2, 3), 0.5, torch.ones(3)), "probability distribution"),
        (lambda: heat_bath(torch.zeros(2, 3), 0.5, torch.tensor([1.5, -0.5, 0.0])), "probability distribution"),
        (lambda: heat_bath(torch.zeros(2, 3), 1.5, uniform_noise(3)), r"level must lie in \[0, 1\]"),
        (lambda: heat_bath(torch.zeros(2, 3), float("nan"), uniform_noise(3)), "level must lie"),
        (lambda: heat_bath(torch.zeros(2, 3), torch.ones(3), uniform_noise(3)), "level does not fit"),
        (lambda: heat_bath(torch.full((2, 3), torch.nan), 0.5, uniform_noise(3)), "NaN"),
        (lambda: heat_bath(torch.full((2, 3), -torch.inf), 0.5, uniform_noise(3)), "hold a distribution"),
        (lambda: signal_logit(torch.zeros(2, 3), 0.5, -0.1, uniform_noise(3)), "keep must lie"),
        (lambda: add_noise(torch.tensor([[5]]), torch.ones(1, 1), uniform_noise(4)), "another tokenizer"),
        (lambda: add_noise(torch.tensor([[1.0]]), torch.ones(1, 1), uniform_noise(4)), "integers"),
        (lambda: add_noise(torch.tensor([[1, 1]]), torch.ones(1, 3), uniform_noise(4)), "level does not fit"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_input_is_named(call, words):
    with pytest.raises(UserError, match=words):
        call()
