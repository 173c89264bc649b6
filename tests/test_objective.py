"""The losses against enumeration of every draw that they stand for."""

import pytest
import torch

from ggm_image import objective
from ggm_image.errors import UserError
from ggm_image.glauber import signal_logit, uniform_noise
from ggm_image.objective import LOSSES, loss

CODES = 4
NOISE = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def enumerated(logits, x_0: int, level: float, keep: float) -> torch.Tensor:
    """Mean over x_t given x_0 and over Z of the paper's binary cross-entropy, one case at a time."""
    s = signal_logit(logits, level, keep, NOISE)
    cost = torch.zeros((), dtype=torch.float64)
    for a in range(CODES):
        x_t_is_a = level * (a == x_0) + (1 - level) * NOISE[a]
        cost = cost - keep * x_t_is_a * torch.sigmoid(s[a]).log()  # Z = phi: signal, and the token is x_t
        cost = cost - (1 - keep) * NOISE[a] * torch.sigmoid(-s[a]).log()  # Z = a: noise
    return cost


@pytest.mark.parametrize("level", [0.0, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("nu", [0.5, 1.0, 64.0])
def test_binary_is_the_enumerated_expectation(level, nu, generator):
    # seen to fail with level and 1 - level swapped, with nu left out of the offset, and with keep and 1 -
    # keep swapped
    logits = torch.randn(CODES, generator=generator, dtype=torch.float64)
    keep = 1 / (1 + nu)
    for x_0 in range(CODES):
        token, at = torch.tensor([x_0]), torch.tensor([level], dtype=torch.float64)
        expected = enumerated(logits, x_0, level, keep) / keep
        by_contrast = loss("binary", logits[None], token, at, None, NOISE, contrast=nu)
        torch.testing.assert_close(by_contrast, expected)
        by_keep = loss("binary", logits[None], token, at, torch.tensor([keep]).double(), NOISE, contrast=None)
        torch.testing.assert_close(by_keep, expected)


@pytest.mark.parametrize(("level", "keep"), [(0.7, 0.5), (1.0, 0.2), (0.2, 0.8)])
def test_gradient_of_binary_is_the_mean_gradient_of_the_single_draws(level, keep, generator):
    # 400,000 draws, each logit's mean gradient within 4 standard errors (about 0.001): a deviation of 0.01
    # is always seen. seen to fail when the drawn token ignored `level`, and when the sampled loss labelled
    # noise as signal
    draws = 400_000
    logits = torch.randn(CODES, generator=generator, dtype=torch.float64)
    x_0 = torch.tensor([1])
    at = torch.tensor([level], dtype=torch.float64)

    one = logits.clone().requires_grad_()
    (keep * loss("binary", one[None], x_0, at, keep, NOISE, contrast=None)).backward()

    many = logits.repeat(draws, 1).requires_grad_()
    sampled = loss("binary-sampled", many, x_0.expand(draws), at.expand(draws), keep, NOISE, generator=generator)
    sampled.backward()
    gradients = many.grad * draws
    error = gradients.std(0) / draws**0.5
    assert bool(((gradients.mean(0) - one.grad).abs() < 4 * error + 1e-12).all())
    assert float(error.max()) < 0.002
    expected = enumerated(logits, 1, level, keep)
    assert abs(float(sampled.detach()) - float(expected)) < 0.01


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("binary", {"keep": None, "contrast": 1.0}, 1e-5),
        ("binary", {"keep": None, "contrast": 64.0}, 1e-5),
        ("binary", {"keep": 0.9, "contrast": None}, 1e-5),
        ("cross-entropy", {"keep": None}, 1e-5),
        ("cross-entropy-noisy", {"keep": None}, 1e-5),
        ("binary-sampled", {"keep": 0.5}, 0.03),
    ],
)
def test_all_losses_have_the_same_minimiser(name, options, tolerance):
    # x_0 takes every code in proportion to its probability in this context, at two levels. The single-draw
    # loss is a sample mean (fixed draws), so its minimiser is near. Seen to fail with the noise left out of
    # _log_ratio
    clean = torch.tensor([0.1, 0.6, 0.05, 0.25], dtype=torch.float64)
    copies = 3_000 if name == "binary-sampled" else 1
    x_0 = torch.repeat_interleave(torch.arange(CODES), (clean * 20).round().long()).repeat(2 * copies)
    level = torch.tensor([0.9, 0.5], dtype=torch.float64).repeat_interleave(20 * copies)
    logits = torch.zeros(CODES, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([logits], max_iter=40, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        generator = torch.Generator().manual_seed(1)
        value = loss(name, logits.expand(len(x_0), -1), x_0, level, noise=NOISE, generator=generator, **options)
        value.backward()
        return value

    optimiser.step(closure)
    torch.testing.assert_close(logits.softmax(-1).detach(), clean, atol=tolerance, rtol=0)


def test_noisy_cross_entropy_is_the_enumerated_one():
    noise, level, x_0 = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.6]), torch.tensor([2])
    logits = torch.tensor([[0.3, -1.0, 0.7]])
    p0 = logits.softmax(-1)[0]
    q = 0.6 * p0 + 0.4 * noise
    for code in range(3):
        expected = -(0.6 * q[code].log() + 0.4 * (0.5 * q[0].log() + 0.5 * q[1].log()))
        got = loss("cross-entropy-noisy", logits, x_0 * 0 + code, level, None, noise)
        torch.testing.assert_close(got, expected)


def test_large_contrast_is_maximum_likelihood(generator):
    logits = torch.randn(8, CODES, generator=generator, dtype=torch.float64)
    x_0 = torch.randint(CODES, (8,), generator=generator)
    level = torch.rand(8, generator=generator, dtype=torch.float64)
    gradients = []
    for name, contrast in (("binary", 1e7), ("cross-entropy-noisy", None)):
        given = logits.clone().requires_grad_()
        loss(name, given, x_0, level, None, NOISE, contrast=contrast).backward()
        gradients.append(given.grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-5)


def test_gradient_of_binary_by_differences(generator):
    logits = torch.randn(3, CODES, generator=generator, dtype=torch.float64, requires_grad=True)
    x_0, level = torch.tensor([0, 1, 3]), torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda u: loss("binary", u, x_0, level, None, NOISE), (logits,))


@pytest.mark.parametrize("name", LOSSES)
def test_values_and_gradients_stay_finite(name, generator):
    # seen to fail (NaN) when the logarithm of a zero in the noise was not masked
    noise = torch.tensor([0.0, 0.5, 0.5, 0.0])
    logits = torch.tensor([[200.0, -200.0, 0.0, 1.0]]).repeat(12, 1).requires_grad_()
    x_0 = torch.arange(4).repeat(3)
    level = torch.tensor([0.0, 0.5, 1.0]).repeat_interleave(4)
    value = loss(name, logits, x_0, level, 0.5, noise, generator=generator)
    value.backward()
    assert bool(value.isfinite())
    assert bool(logits.grad.isfinite().all())


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_is_widened_also_under_autocast(name, generator):
    # seen to fail (by 0.2%) without the autocast guard
    logits = torch.randn(6, 5, 64, generator=generator).bfloat16()
    x_0 = torch.randint(64, (6, 5), generator=generator)
    level = torch.rand(6, 5, generator=generator)

    def value(given):
        return loss(name, given, x_0, level, 0.5, uniform_noise(64), generator=torch.Generator().manual_seed(0))

    expected = value(logits.float())
    assert expected.dtype == torch.float32
    torch.testing.assert_close(value(logits), expected, rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(value(logits), expected, rtol=0, atol=0)


def test_the_single_draw_depends_on_its_generator_alone(generator):
    logits = torch.randn(16, CODES, generator=generator)
    x_0, level = torch.zeros(16, dtype=torch.int64), torch.full((16,), 0.5)

    def value(seed):
        draw = torch.Generator().manual_seed(seed)
        return float(loss("binary-sampled", logits, x_0, level, 0.5, NOISE.float(), generator=draw))

    assert value(0) == value(0) != value(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_draw_that_was_rounded_up_to_one_is_the_last_code(dtype: torch.dtype) -> None:
    """Of 34 million numbers in [0, 1), one becomes 1 in float32. Seen to fail: a token outside the codebook."""
    logits = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))
    noise, x_0, level = torch.full((8,), 1 / 8), torch.tensor([0]), torch.tensor([0.5])
    rounded, last = (torch.tensor([[0.9, 0.9, u]], dtype=dtype) for u in (1.0, 0.99))
    losses = [loss("binary-sampled", logits, x_0, level, 0.5, noise, uniforms=u) for u in (rounded, last)]
    assert torch.equal(losses[0], losses[1])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "hinge"}, "unknown loss"),
        ({"x_0": torch.zeros(3, dtype=torch.int64)}, "do not fit"),
        ({"noise": uniform_noise(5)}, "do not fit"),
        ({"contrast": 0.0}, "contrast"),
        ({"contrast": float("inf")}, "contrast"),
        ({"contrast": None}, "needs keep"),
        ({"name": "binary-sampled", "keep": 1.0}, "keep must lie"),
        ({"name": "binary-sampled", "keep": float("nan")}, "keep must lie"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_bad_input_is_named(change, words):
    given = {
        "name": "binary",
        "clean_logits": torch.zeros(2, CODES),
        "x_0": torch.zeros(2, dtype=torch.int64),
        "level": torch.ones(2),
        "keep": None,
        "noise": NOISE.float(),
    }
    with pytest.raises(UserError, match=words):
        loss(**{**given, **change})


@pytest.mark.parametrize("nu", [64.0, 0.5, None])
@pytest.mark.parametrize(("lowest", "highest"), [(0.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
@pytest.mark.parametrize("banned", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_loss_and_gradient_at_once_are_those_of_the_formula(nu, lowest, highest, banned, dtype, generator, monkeypatch):
    # in parts of three rows; seen to fail with a part's gradient written to the first rows, with the own term's sign
    # turned, and with (1 - level) / ratio left out
    monkeypatch.setitem(objective._AT_ONCE, "cpu", 3 * CODES)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    noise = NOISE.to(wide)
    if banned:
        noise = torch.tensor([0.0, 0.6, 0.3, 0.1], dtype=wide)
    n = 40
    logits = (3 * torch.randn(n, CODES, generator=generator)).to(dtype)
    logits[0, 1] = -2000  # its probability underflows
    x_0 = torch.arange(n) % CODES
    x_0[0] = 1
    level = lowest + (highest - lowest) * torch.rand(n, generator=generator, dtype=wide)
    level[4] = 1
    draws = 0.1 + torch.rand(n, generator=generator, dtype=wide) if nu is None else nu
    found = []
    for form in (objective._binary, objective._binary_at_once):
        own = logits.clone().requires_grad_()
        cost = form(own.to(wide) if form is objective._binary else own, x_0, level, draws, noise)
        (cost * torch.arange(1, n + 1)).sum().backward()
        found.append((cost.detach(), own.grad))
    (cost, gradient), (cost_here, gradient_here) = found
    torch.testing.assert_close(cost_here, cost, rtol=2e-5 if wide == torch.float32 else 1e-9, atol=1e-5)
    tolerance = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(gradient_here, gradient, rtol=tolerance, atol=tolerance * float(gradient.abs().mean()))
