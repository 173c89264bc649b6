"""Precision, recall, density and coverage: are the generated images like real ones, and are all kinds there?

    precision = share of generated images within the k-th neighbour's distance of some real one
    recall    = the same with the sides exchanged
    density   = real balls that a generated image lies in, on average, over k
    coverage  = share of real balls with a generated image in them

Kynkäänniemi et al., "Improved Precision and Recall Metric", arXiv 1904.06991 (closed balls, k = 3); Naeem et al.,
"Reliable Fidelity and Diversity Metrics", arXiv 2002.09797 (open balls, k = 5). Every image has a ball, up to
its k-th neighbour on its own side.

Distances are taken block by block in float32 about the mean of the real features: memory does not grow with the number
of images but for a few numbers each, the time does with its square.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ggm_image.metrics.feature_file import FeatureMatrix
from ggm_image.runtime.numerics import exact_arithmetic
from ggm_image.runtime.progress import progress

PRECISION_K, DENSITY_K = 3, 5
_BLOCK = 2048
_ALIKE = 1e-6
"""Squared distances below this share of the squared norms are rounding, or images that are all but the same."""


def prdc(
    generated: FeatureMatrix | Tensor, reference: FeatureMatrix | Tensor, *, device: str | torch.device = "cpu"
) -> dict[str, float]:
    """``precision``, ``recall``, ``coverage`` in [0, 1]; ``density``, about 1 for real images. At least 6 rows each."""
    return RealNeighbours(reference, device=device).figures(generated)


class RealNeighbours:
    """The reference side of `prdc`: its balls are computed once for any number of generated sides.

    Args:
        reference: more than 5 rows; a tensor stays on its device, which should be ``device``.
    """

    def __init__(self, reference: FeatureMatrix | Tensor, *, device: str | torch.device = "cpu") -> None:
        self.device, self.reference = torch.device(device), reference
        if isinstance(reference, Tensor):
            self.centre: np.ndarray | Tensor = reference.mean(dim=0)
        else:
            self.centre = sum(reference[part].sum(axis=0) for part in reference.slices()) / len(reference)
        self._closed, self._open = self._radii(reference, [PRECISION_K, DENSITY_K], "reference")

    def figures(self, generated: FeatureMatrix | Tensor) -> dict[str, float]:
        """What `prdc` returns for these generated rows (n, d), n > 5."""
        (generated_closed,) = self._radii(generated, [PRECISION_K], "generated")
        recalled = torch.zeros(len(self.reference), dtype=torch.bool, device=self.device)
        covered = recalled.clone()
        precise = inside = 0
        for mine in progress(_parts(generated), total=len(_parts(generated)), unit="block", label="precision"):
            rows = self._load(generated, mine)
            near = torch.zeros(len(rows), dtype=torch.bool, device=self.device)
            for theirs in _parts(self.reference):
                squared = _squared_distances(rows, self._load(self.reference, theirs))
                near |= (squared <= self._closed[theirs]).any(dim=1)
                recalled[theirs] |= (squared <= generated_closed[mine, None]).any(dim=0)
                within = squared < self._open[theirs]
                covered[theirs] |= within.any(dim=0)
                inside += int(within.sum())
            precise += int(near.sum())
        return {
            "precision": precise / len(generated),
            "recall": recalled.sum().item() / len(recalled),
            "density": inside / (DENSITY_K * len(generated)),
            "coverage": covered.sum().item() / len(covered),
        }

    def _load(self, matrix: FeatureMatrix | Tensor, part: slice) -> Float[Tensor, "m d"]:
        """Rows about the mean of the reference, in float32."""
        rows = matrix[part] - self.centre
        return (rows if isinstance(rows, Tensor) else torch.from_numpy(rows)).to(self.device, torch.float32)

    def _radii(self, matrix: FeatureMatrix | Tensor, ks: list[int], label: str) -> list[Float[Tensor, " n"]]:
        """Squared distance of every row to its k-th neighbour in ``matrix``, for each k."""
        found = [torch.empty(len(matrix), device=self.device) for _ in ks]
        for mine in progress(_parts(matrix), total=len(_parts(matrix)), unit="block", label=f"{label} neighbours"):
            rows = self._load(matrix, mine)
            nearest = torch.empty(len(rows), 0, device=self.device)
            for theirs in _parts(matrix):
                squared = _squared_distances(rows, self._load(matrix, theirs))
                count = min(max(ks) + 1, squared.shape[1])
                candidates = torch.cat([nearest, squared.topk(count, largest=False).values], dim=1)
                count = min(max(ks) + 1, candidates.shape[1])
                nearest = candidates.topk(count, largest=False).values
            for radius, k in zip(found, ks, strict=True):
                radius[mine] = nearest[:, k]  # column 0 is the row itself
        return found


def _parts(matrix: FeatureMatrix | Tensor) -> list[slice]:
    return [slice(start, min(start + _BLOCK, len(matrix))) for start in range(0, len(matrix), _BLOCK)]


def _squared_distances(a: Float[Tensor, "m d"], b: Float[Tensor, "n d"]) -> Float[Tensor, "m n"]:
    with exact_arithmetic():
        norms = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)
        squared = norms - 2 * a @ b.T
        return squared.masked_fill_(squared <= _ALIKE * norms, 0)
