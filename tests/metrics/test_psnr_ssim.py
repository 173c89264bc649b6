"""PSNR and SSIM against closed forms and against the definition, written out with loops."""

import math

import pytest
import torch

from ggm_image.errors import UserError
from ggm_image.metrics.psnr_ssim import psnr, psnr_each, ssim, ssim_each

C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def flat(value: int) -> torch.Tensor:
    return torch.full((1, 3, 16, 16), value, dtype=torch.uint8)


# Seen to fail with uint8 subtraction (100 - 110 wraps round) and with 20 log10 of the MSE.
def test_psnr_of_a_known_error() -> None:
    a, b = torch.cat([flat(100), flat(0)]), torch.cat([flat(110), flat(255)])
    assert psnr_each(a, b).tolist() == pytest.approx([10 * math.log10(255**2 / 100), 0.0])
    assert float(psnr(a, b)) == pytest.approx(5 * math.log10(255**2 / 100))
    assert psnr_each(a, a).tolist() == [math.inf, math.inf]


def test_ssim_closed_forms() -> None:
    assert float(ssim(noise(2, 3, 20, 20), noise(2, 3, 20, 20))) == pytest.approx(1.0)
    # Flat images: only the luminance term is left.
    assert float(ssim(flat(100), flat(150))) == pytest.approx((2 * 100 * 150 + C1) / (100**2 + 150**2 + C1))
    x = noise(1, 1, 16, 16)
    assert float(ssim(x, 255 - x)) < 0


def definition(x: torch.Tensor, y: torch.Tensor, length: int) -> float:
    """Wang et al. 2004, equation by equation, on two grey images (h, w)."""
    r = length // 2
    weights = {(i, j): math.exp(-(i * i + j * j) / (2 * 1.5**2)) for i in range(-r, r + 1) for j in range(-r, r + 1)}
    total = sum(weights.values())
    values = []
    for top in range(r, x.shape[0] - r):
        for left in range(r, x.shape[1] - r):
            window = [
                (w / total, float(x[top + i, left + j]), float(y[top + i, left + j])) for (i, j), w in weights.items()
            ]
            mx, my = sum(w * a for w, a, _ in window), sum(w * b for w, _, b in window)
            vx, vy = sum(w * (a - mx) ** 2 for w, a, _ in window), sum(w * (b - my) ** 2 for w, _, b in window)
            cov = sum(w * (a - mx) * (b - my) for w, a, b in window)
            values.append((2 * mx * my + C1) * (2 * cov + C2) / ((mx**2 + my**2 + C1) * (vx + vy + C2)))
    return sum(values) / len(values)


# Seen to fail with sigma 1, with K2 = 0.01, and with zero padding at the borders.
@pytest.mark.parametrize(("side", "length"), [(13, 11), (8, 7), (1, 1)])
def test_ssim_is_the_papers(side: int, length: int) -> None:
    x = noise(2, 3, side, side)
    y = (x.int() + noise(2, 3, side, side, seed=1).int() % 60 - 30).clamp(0, 255).to(torch.uint8)
    wanted = [sum(definition(x[n, c], y[n, c], length) for c in range(3)) / 3 for n in range(2)]
    assert ssim_each(x, y).tolist() == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("function", [psnr, ssim])
@pytest.mark.usefixtures("unchecked_shapes")
def test_what_cannot_be_compared(function: object) -> None:
    with pytest.raises(UserError, match=r"\(1, 3, 8, 8\) and \(1, 3, 8, 9\)"):
        function(noise(1, 3, 8, 8), noise(1, 3, 8, 9))
    with pytest.raises(UserError, match=r"float32"):
        function(noise(1, 3, 8, 8).float(), noise(1, 3, 8, 8))
