"""How far the Fréchet distance would move with other images from the same model: a bootstrap.

The generated images are resampled with replacement. The reference is fixed: it is part of the protocol and the same for
every figure reported against it, while another seed gives other generated images.

The distance of n images is too high by about c / n. A replicate is a sample of a sample and carries that bias once
more, so replicates scatter around (figure + bias), not around the figure. Hence the interval is that of the
replicates shifted by (figure - their mean): it is centred on the figure and says what chance does to it. The shift
itself estimates the bias, and is reported rather than subtracted: figures in the literature are not corrected.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from ggm_image.metrics.feature_file import FeatureMatrix
from ggm_image.metrics.fid import FeatureStatistics, factor
from ggm_image.runtime.numerics import exact_arithmetic
from ggm_image.runtime.progress import progress

LEVEL = 0.95


def bootstrap(
    generated: FeatureMatrix,
    reference: FeatureStatistics,
    value: float,
    *,
    replicates: int = 100,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Standard error, interval and bias of a Fréchet distance.

    Args:
        generated: at least 2 rows.
        reference: statistics of the other side.
        value: the distance of ``generated`` and ``reference``.
        replicates: how many resampled sets, at least 2. Each is one more pass over the features.
        device: where moments are computed, in float64.

    Returns:
        ``standard_error``; ``interval``, the 95% interval around ``value``; ``bias``, the mean of the replicates less
        ``value``; ``level``, ``replicates``, ``seed`` and ``resampled``.
    """
    distance = _DistanceOfCounts(generated, reference, torch.device(device))
    found = np.empty(replicates)
    for k in progress(range(replicates), total=replicates, unit="replicate", label="bootstrap"):
        sampled = np.random.default_rng([seed, k]).integers(len(generated), size=len(generated))
        found[k] = distance(np.bincount(sampled, minlength=len(generated)))
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    return {
        "standard_error": float(found.std(ddof=1)),
        "interval": (np.quantile(found, tails) + value - found.mean()).tolist(),
        "level": LEVEL,
        "bias": float(found.mean() - value),
        "replicates": replicates,
        "seed": seed,
        "resampled": "generated",
    }


class _DistanceOfCounts:
    """Fréchet distance to ``reference`` of the rows of ``matrix``, row k counted ``counts[k]`` times.

    With F F^T the reference's covariance, tr((C C_r)^(1/2)) is the sum of the square roots of the eigenvalues of
    F^T C F: one decomposition a replicate instead of three.
    """

    def __init__(self, matrix: FeatureMatrix, reference: FeatureStatistics, device: torch.device) -> None:
        self.matrix = matrix
        self.device = torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
        self.factor = torch.from_numpy(factor(reference.covariance)).to(self.device)
        self.target = torch.from_numpy(reference.mean).to(self.device)
        self.trace = float(np.trace(reference.covariance))

    def __call__(self, counts: np.ndarray) -> float:
        mean, covariance = self._moments(counts)
        projected = self.factor.T @ covariance @ self.factor
        spectrum = torch.linalg.eigvalsh((projected + projected.T) / 2)
        # Noise of eps in an eigenvalue would be sqrt(eps) in its root.
        spectrum = spectrum[spectrum > spectrum[-1] * len(spectrum) * torch.finfo(torch.float64).eps]
        shift = mean - self.target
        return float(shift @ shift + covariance.trace() + self.trace - 2 * spectrum.sqrt().sum())

    def _moments(self, counts: np.ndarray) -> tuple[Float64[Tensor, " d"], Float64[Tensor, "d d"]]:
        """Mean and unbiased covariance, about the reference's mean so that features far from zero lose no digits."""
        d, n = self.matrix.shape[1], int(counts.sum())
        first = torch.zeros(d, dtype=torch.float64, device=self.device)
        second = torch.zeros(d, d, dtype=torch.float64, device=self.device)
        with exact_arithmetic():
            for part in self.matrix.slices():
                kept = counts[part] > 0
                weights = torch.from_numpy(counts[part][kept].astype(np.float64)).to(self.device)
                rows = torch.from_numpy(self.matrix[part][kept]).to(self.device) - self.target
                first += weights @ rows
                second.addmm_((rows * weights[:, None]).T, rows)
            first /= n
            return first + self.target, (second - n * torch.outer(first, first)) / (n - 1)
