"""The Fréchet distance against closed forms, the textbook matrix square root and clean-fid's own code."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import linalg

from ggm_image.errors import UserError
from ggm_image.metrics.fid import FeatureStatistics, frechet_distance, frechet_distance_of_few


def gaussian(mean, covariance, count=1000):
    """Statistics with exactly these moments."""
    covariance = np.asarray(covariance, dtype=np.float64)
    return FeatureStatistics(count, np.asarray(mean, dtype=np.float64), covariance * (count - 1))


def textbook(a, b):
    """The definition, through the matrix square root of the plain product."""
    root = linalg.sqrtm(a.covariance @ b.covariance).real
    return float(np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2 * root))


def random_features(seed, n, d, scale=1.0, shift=0.0):
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((d, d)) / np.sqrt(d)
    return scale * rng.standard_normal((n, d)) @ mixing + shift


def test_closed_form_of_one_dimension():
    """(m1 - m2)^2 + (s1 - s2)^2. Seen to fail with the trace of C_a C_b in place of its square root's."""
    a, b = gaussian([1.0], [[9.0]]), gaussian([-2.0], [[0.25]])
    assert frechet_distance(a, b) == pytest.approx(9 + 2.5**2, rel=1e-12)


def test_closed_form_of_commuting_covariances():
    """Shared axes, two of them flat on one side: a sum over the axes.

    Seen to fail without the factor 2 before the overlap, and when directions with a variance of rounding
    noise (1e-16) stay in the factors.
    """
    rotation, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))
    s1, s2 = np.array([3.0, 2, 1, 0.5, 0.1, 0]), np.array([1.0, 2, 2, 0.1, 0, 0.7])
    a = gaussian(np.ones(6), rotation * s1**2 @ rotation.T)
    b = gaussian(np.zeros(6), rotation * s2**2 @ rotation.T)
    assert frechet_distance(a, b) == pytest.approx(6 + np.sum((s1 - s2) ** 2), rel=1e-9)


def test_a_set_is_at_no_distance_from_itself():
    a = FeatureStatistics.of(random_features(1, 200, 32))
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)


def test_agrees_with_the_matrix_square_root():
    """Covariances that do not commute, where products in the wrong order or a transposed factor show."""
    a = FeatureStatistics.of(random_features(2, 500, 40))
    b = FeatureStatistics.of(random_features(3, 400, 40, scale=1.7, shift=0.3))
    assert frechet_distance(a, b) == pytest.approx(textbook(a, b), rel=1e-9)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_agrees_with_clean_fid(monkeypatch):
    """clean-fid's own function, with the interface of SciPy's square root that 1.18 has taken away."""
    from cleanfid import fid

    monkeypatch.setattr(fid, "linalg", SimpleNamespace(sqrtm=lambda matrix, disp: (linalg.sqrtm(matrix), 0.0)))
    features = random_features(4, 600, 48), random_features(5, 700, 48, scale=0.8, shift=0.1)
    a, b = map(FeatureStatistics.of, features)
    assert frechet_distance(a, b) == pytest.approx(fid.fid_from_feats(*features), rel=1e-6)


def test_fewer_samples_than_features():
    """Singular covariances: warned about, and equal to the distance inside the space that they span."""
    rng = np.random.default_rng(6)
    axes, _ = np.linalg.qr(rng.standard_normal((300, 8)))
    inside = rng.standard_normal((20, 8)), 2 * rng.standard_normal((30, 8))
    expected = frechet_distance(*map(FeatureStatistics.of, inside))
    with pytest.warns(UserWarning, match="20 samples for 300 features"):
        distance = frechet_distance(*(FeatureStatistics.of(x @ axes.T) for x in inside))
    assert distance == pytest.approx(expected, rel=1e-9)


def test_few_rows_are_their_own_factor():
    """Without a covariance matrix: the same distance, for more and for fewer rows than features."""
    for n, m, d in ((20, 30, 300), (50, 40, 6)):
        a, b = random_features(8, n, d), random_features(9, m, d, scale=1.5, shift=0.2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            expected = frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b))
        assert frechet_distance_of_few(a, b) == pytest.approx(expected, rel=1e-9)


def test_constant_features():
    """All images alike: only the means count."""
    a, b = FeatureStatistics.of(np.ones((5, 3))), FeatureStatistics.of(np.zeros((5, 3)))
    assert frechet_distance(a, b) == pytest.approx(3)


@pytest.mark.parametrize("chunks", [[1] * 37, [5, 1, 31], [37]])
def test_chunks_do_not_matter(chunks):
    """Far from zero, where sums of squares would cancel.

    Seen to fail with the scatter accumulated as E[x x^T] - m m^T, and with the merge's shift term left out.
    """
    features = random_features(7, 37, 5) + 1e6
    statistics = FeatureStatistics.empty(5)
    for chunk in np.split(features, np.cumsum(chunks)[:-1]):
        statistics.update(chunk)
    assert statistics.count == 37
    np.testing.assert_allclose(statistics.mean, features.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(statistics.covariance, np.cov(features - 1e6, rowvar=False), atol=1e-8)


def test_refusals():
    with pytest.raises(UserError, match="at least 2 samples"):
        frechet_distance(FeatureStatistics.of(np.ones((1, 3))), FeatureStatistics.of(np.eye(3)))
    with pytest.raises(UserError, match="4 and 3"):
        frechet_distance(FeatureStatistics.of(np.eye(4)), FeatureStatistics.of(np.eye(3)))
    with pytest.raises(UserError, match="1 of 3 rows"):
        FeatureStatistics.of(np.array([[1.0, 2], [np.nan, 1], [3, 4]]))
