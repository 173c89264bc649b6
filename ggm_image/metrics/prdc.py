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


def prdc(generated: FeatureMatrix, reference: FeatureMatrix, *, device: str | torch.device = "cpu") -> dict[str, float]:
    """``precision``, ``recall`` and ``coverage`` in [0, 1], and ``density``, which is about 1 for real images.

    Args:
        generated: more than 5 rows.
        reference: the same.
        device: where distances are computed.
    """
    blocks = _Blocks(reference, torch.device(device))
    real_closed, real_open = blocks.radii(reference, [PRECISION_K, DENSITY_K], "reference")
    (drawn_closed,) = blocks.radii(generated, [PRECISION_K], "generated")
    recalled = torch.zeros(len(reference), dtype=torch.bool, device=blocks.device)
    covered = recalled.clone()
    precise = inside = 0
    for mine in progress(_parts(generated), total=len(_parts(generated)), unit="block", label="precision"):
        rows = blocks.load(generated, mine)
        near = torch.zeros(len(rows), dtype=torch.bool, device=blocks.device)
        for theirs in _parts(reference):
            squared = _squared_distances(rows, blocks.load(reference, theirs))
            near |= (squared <= real_closed[theirs]).any(dim=1)
            recalled[theirs] |= (squared <= drawn_closed[mine, None]).any(dim=0)
            within = squared < real_open[theirs]
            covered[theirs] |= within.any(dim=0)
            inside += int(within.sum())
        precise += int(near.sum())
    return {
        "precision": precise / len(generated),
        "recall": float(recalled.double().mean()),
        "density": inside / (DENSITY_K * len(generated)),
        "coverage": float(covered.double().mean()),
    }


class _Blocks:
    """Rows of features on a device, about the mean of ``reference``."""

    def __init__(self, reference: FeatureMatrix, device: torch.device) -> None:
        self.device = device
        self.centre = sum(reference[part].sum(axis=0) for part in reference.slices()) / len(reference)

    def load(self, matrix: FeatureMatrix, part: slice) -> Float[Tensor, "m d"]:
        return torch.from_numpy((matrix[part] - self.centre).astype(np.float32)).to(self.device)

    def radii(self, matrix: FeatureMatrix, ks: list[int], label: str) -> list[Float[Tensor, " n"]]:
        """Squared distance of every row to its k-th neighbour in ``matrix``, for each k."""
        found = [torch.empty(len(matrix), device=self.device) for _ in ks]
        for mine in progress(_parts(matrix), total=len(_parts(matrix)), unit="block", label=f"{label} neighbours"):
            rows = self.load(matrix, mine)
            nearest = torch.empty(len(rows), 0, device=self.device)
            for theirs in _parts(matrix):
                squared = _squared_distances(rows, self.load(matrix, theirs))
                count = min(max(ks) + 1, squared.shape[1])
                candidates = torch.cat([nearest, squared.topk(count, largest=False).values], dim=1)
                count = min(max(ks) + 1, candidates.shape[1])
                nearest = candidates.topk(count, largest=False).values
            for radius, k in zip(found, ks, strict=True):
                radius[mine] = nearest[:, k]  # column 0 is the row itself
        return found


def _parts(matrix: FeatureMatrix) -> list[slice]:
    return [slice(start, min(start + _BLOCK, len(matrix))) for start in range(0, len(matrix), _BLOCK)]


def _squared_distances(a: Float[Tensor, "m d"], b: Float[Tensor, "n d"]) -> Float[Tensor, "m n"]:
    with exact_arithmetic():
        norms = a.square().sum(dim=1)[:, None] + b.square().sum(dim=1)
        squared = norms - 2 * a @ b.T
        return squared.masked_fill_(squared <= _ALIKE * norms, 0)
