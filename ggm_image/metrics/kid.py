"""Kernel distance (KID): the squared maximum mean discrepancy of two sets of features, without the bias of FID.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),    k(x, y) = (x . y / d + 1)^3

Bińkowski et al., "Demystifying MMD GANs", arXiv 1801.01401. clean-fid's own function computes it, subset by subset;
it needs nothing of SciPy, so that it runs with every version.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ggm_image.metrics.feature_file import FeatureMatrix

SUBSETS, SUBSET_SIZE = 100, 1000


def kernel_distance(generated: FeatureMatrix, reference: FeatureMatrix, *, seed: int = 0) -> dict[str, Any]:
    """KID as clean-fid has it: the mean over 100 random subsets of at most 1,000 images of either side.

    Args:
        generated: at least 2 rows.

    Returns:
        ``value``; ``standard_error`` of that mean, as far as it comes from the choice of the subsets (None where a
        subset is all there is); ``subsets``, ``subset_size`` and ``seed``.
    """
    from cleanfid import fid

    size = min(len(generated), len(reference), SUBSET_SIZE)
    # Where both sides are used whole, every subset is the same.
    subsets = 1 if size == max(len(generated), len(reference)) else SUBSETS
    with _global_seed(seed):
        # Separate calls use the same random numbers as a single call, and show how far the subsets differ.
        values = [
            fid.kernel_distance(generated, reference, num_subsets=1, max_subset_size=size) for _ in range(subsets)
        ]
    return {
        "value": float(np.mean(values)),
        "standard_error": None if subsets == 1 else float(np.std(values, ddof=1) / np.sqrt(subsets)),
        "subsets": subsets,
        "subset_size": size,
        "seed": seed,
    }


@contextmanager
def _global_seed(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, which clean-fid uses, and restore it at the end."""
    state = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
