"""Fréchet distance between two sets of features, in float64.

    d^2 = |m_a - m_b|^2 + tr(C_a) + tr(C_b) - 2 tr((C_a C_b)^(1/2))

Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", arXiv 1706.08500. With factors C = F F^T
the last trace is the sum of the singular values of F_a^T F_b. That needs neither a matrix square root
(whose interface SciPy changed in 1.18) nor a full-rank covariance: directions without variance are left out
of the factors instead of being lifted by a small multiple of the identity, as is usual.

Legend: ``n`` samples, ``d`` features, ``r`` directions with variance.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import linalg

from ggm_image.errors import UserError


@dataclass
class FeatureStatistics:
    """Count, mean and covariance of a stream of feature vectors, exact to rounding for any split into chunks.

    Chunks are merged by the pairwise update of Chan, Golub and LeVeque (1979): every scatter is taken
    about its own chunk's mean, so features far from zero lose no digits.
    """

    count: int
    mean: Float[np.ndarray, " d"]
    scatter: Float[np.ndarray, "d d"]

    @classmethod
    def empty(cls, dimension: int) -> "FeatureStatistics":
        """Statistics of no vectors yet, of ``dimension`` features each."""
        return cls(0, np.zeros(dimension), np.zeros((dimension, dimension)))

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"]) -> "FeatureStatistics":
        """Statistics of one chunk."""
        features = np.asarray(features, dtype=np.float64)
        if features.ndim != 2 or not len(features):
            raise UserError("features must be a matrix (samples, dimension)", features.shape, "one row a sample")
        if not np.isfinite(features).all():
            raise UserError(
                "features must be finite",
                f"{int((~np.isfinite(features)).any(axis=1).sum())} of {len(features)} rows are not",
                "check the feature network and its input",
            )
        mean = features.mean(axis=0)
        deviations = features - mean
        return cls(len(features), mean, deviations.T @ deviations)

    @property
    def dimension(self) -> int:
        """Features in a vector."""
        return len(self.mean)

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """Unbiased covariance: scatter / (count - 1)."""
        if self.count < 2:
            raise UserError("a covariance needs at least 2 samples", self.count, "give more images")
        return self.scatter / (self.count - 1)

    def update(self, features: Float[np.ndarray, "n d"]) -> None:
        """Take in one more chunk, of at least one vector."""
        self.merge(FeatureStatistics.of(features))

    def merge(self, other: "FeatureStatistics") -> None:
        """Take in everything that ``other`` has seen."""
        _check_dimensions(self, other)
        total = self.count + other.count
        if not total:
            return
        shift = other.mean - self.mean
        self.mean = self.mean + shift * (other.count / total)
        between = np.outer(shift, shift) * (self.count * other.count / total)
        self.scatter = self.scatter + other.scatter + between
        self.count = total


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Squared Fréchet distance between the Gaussians with the moments of ``a`` and ``b``: what FID reports.

    Each side has at least 2 samples.

    Returns:
        The distance, in squared units of the features, at least 0. It is biased upwards by about
        1 / samples, so compare only figures of equal counts.

    Warns:
        UserWarning: a side has no more samples than dimensions, so that its covariance is singular.
    """
    _check_dimensions(a, b)
    covariance_a, covariance_b = a.covariance, b.covariance
    fewest = min(a.count, b.count)
    if fewest <= a.dimension:
        warnings.warn(
            f"{fewest} samples for {a.dimension} features: the covariance is singular and the distance is "
            "mostly the bias of the small sample",
            stacklevel=2,
        )
    overlap = linalg.svdvals(factor(covariance_a).T @ factor(covariance_b))
    shift = a.mean - b.mean
    distance = shift @ shift + np.trace(covariance_a) + np.trace(covariance_b) - 2 * overlap.sum()
    return max(0.0, float(distance))


def factor(covariance: Float[np.ndarray, "d d"]) -> Float[np.ndarray, "d r"]:
    """F with F F^T = covariance, without the directions whose variance is rounding noise."""
    variances, directions = linalg.eigh(covariance)
    # Noise of eps in a variance would be sqrt(eps) in the factor: a zero has to be made a zero first.
    kept = variances > variances[-1] * len(variances) * np.finfo(np.float64).eps
    if not kept.any():
        return np.zeros((len(variances), 1))
    return directions[:, kept] * np.sqrt(variances[kept])


def frechet_distance_of_few(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m d"]) -> float:
    """`frechet_distance` of two sets of rows, without a matrix (d, d): for fewer rows than features.

    The centred rows over sqrt(n - 1) are themselves a factor of the covariance, so one decomposition of a matrix
    (n, m) is all there is to do.
    """
    rows = [(x - x.mean(axis=0)) / np.sqrt(len(x) - 1) for x in (a, b)]
    shift = a.mean(axis=0) - b.mean(axis=0)
    overlap = linalg.svdvals(rows[0] @ rows[1].T)
    distance = shift @ shift + sum(np.sum(x**2) for x in rows) - 2 * overlap.sum()
    return max(0.0, float(distance))


def _check_dimensions(a: FeatureStatistics, b: FeatureStatistics) -> None:
    if a.dimension != b.dimension:
        raise UserError(
            "both sides need features of one size", f"{a.dimension} and {b.dimension}", "use one feature network"
        )
