"""The kernel distance: clean-fid's figure, from features that lie on disk."""

import numpy as np
import pytest

from ggm_image.metrics import kid
from ggm_image.metrics.kid import kernel_distance
from tests.features import matrix_of


def sets(n: int, m: int, *, shift: float = 0.3, d: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(shift, 1, (n, d)).astype(np.float32), rng.standard_normal((m, d)).astype(np.float32)


@pytest.mark.parametrize("size", [1000, 50])
def test_agrees_with_clean_fid(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same subsets from the same seed. Seen to fail with the sides exchanged, and with one subset less."""
    from cleanfid import fid

    monkeypatch.setattr(kid, "SUBSET_SIZE", size)
    generated, reference = sets(150, 120)
    np.random.seed(3)  # noqa: NPY002
    expected = fid.kernel_distance(generated, reference, num_subsets=100, max_subset_size=size)
    found = kernel_distance(matrix_of(generated), matrix_of(reference), seed=3)
    assert found["value"] == pytest.approx(expected, rel=1e-3)
    assert (found["subsets"], found["subset_size"], found["seed"]) == (100, min(size, 120), 3)


def test_is_the_unbiased_discrepancy() -> None:
    """By the definition, where both sides are used whole; then there are no subsets to differ."""
    x, y = sets(30, 30)

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float(a.astype(float) @ b.astype(float) / len(a) + 1) ** 3

    pairs = [(i, j) for i in range(30) for j in range(30)]
    same = sum((k(x[i], x[j]) + k(y[i], y[j])) / (30 * 29) for i, j in pairs if i != j)
    found = kernel_distance(matrix_of(x), matrix_of(y))
    assert found["value"] == pytest.approx(same - 2 * sum(k(x[i], y[j]) for i, j in pairs) / 900, rel=1e-9)
    assert (found["subsets"], found["standard_error"]) == (1, None)


def test_standard_error_is_that_of_the_subsets() -> None:
    """The scatter of the figure over 40 seeds, within a factor of 1.5: chance alone stays inside 1.35 in 99%."""
    generated, reference = map(matrix_of, sets(120, 40))
    found = [kernel_distance(generated, reference, seed=seed) for seed in range(40)]
    scatter = np.std([f["value"] for f in found], ddof=1)
    assert 1 / 1.5 < scatter / np.mean([f["standard_error"] for f in found]) < 1.5


def test_the_global_generator_is_left_alone() -> None:
    """Seen to fail without the restored state."""
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    generated, reference = map(matrix_of, sets(20, 10))
    assert kernel_distance(generated, reference) == kernel_distance(generated, reference)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
