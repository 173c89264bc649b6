"""Figures that need to know what was asked for: class accuracy, and distances class by class."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

from ggm_image.metrics.feature_file import FeatureMatrix, Features
from ggm_image.metrics.fid import frechet_distance, frechet_distance_of_few
from ggm_image.metrics.kid import kernel_distance
from ggm_image.runtime.progress import progress


def class_accuracy(asked: Features, *others: Features) -> float | None:
    """Share of the images of ``asked`` in which the feature network sees the class that they are of.

    The classifier's classes are taken to be in alphabetical order and named by the classes of one of the sides.

    Returns:
        In [0, 1]; None where the features are of no classifier, where no side has as many classes as it has, or where
        an image has no class.
    """
    classes = asked.record["notes"].get("classifier_classes", 0)
    named = next((side.class_names for side in (*others, asked) if classes and len(side.class_names) == classes), [])
    labels = asked.labels
    if not named or (labels < 0).any() or not {asked.class_names[k] for k in np.unique(labels)} <= set(named):
        return None
    seen = np.array(sorted(named))[asked.rows["prediction"]]
    return float((seen == np.array(asked.class_names)[labels]).mean())


def per_class(
    generated: Features, reference: Features, *, frechet: bool = True, kernel: bool = True, seed: int = 0
) -> dict[str, dict[str, Any]] | None:
    """Distances between the images of each class that both sides have.

    Args:
        generated, reference: the sides; classes are the same where their names are.
        frechet, kernel: which distances to take.

    Returns:
        For every class ``n``, ``n_reference``, and the Fréchet distance ``value`` and the ``kid`` that were asked for,
        None where a side has less than 2 images; None where no class is on both sides.

    Warns:
        UserWarning: once, where classes have no more images than there are features.
    """
    table: dict[str, dict[str, Any]] = {}
    common = sorted(set(_present(generated)) & set(_present(reference)))
    dimension, few = generated.matrix.shape[1], []
    for name in progress(common, total=len(common), unit="class", label="per class"):
        mine, theirs = generated.of_class(name), reference.of_class(name)
        row: dict[str, Any] = {"n": len(mine), "n_reference": len(theirs)}
        enough = min(len(mine), len(theirs)) >= 2
        if frechet:
            row["value"] = _frechet(mine, theirs) if enough else None
            few += [min(len(mine), len(theirs))] if min(len(mine), len(theirs)) <= dimension else []
        if kernel:
            row["kid"] = kernel_distance(mine, theirs, seed=seed)["value"] if enough else None
        table[name] = row
    if few:
        warnings.warn(
            f"{len(few)} of {len(common)} classes have no more samples than features (from {min(few)}, {dimension} "
            "features): their distances are mostly the bias of the small sample",
            stacklevel=2,
        )
    return table or None


def _present(side: Features) -> Iterator[str]:
    return (side.class_names[k] for k in np.unique(side.labels) if k >= 0)


def _frechet(a: FeatureMatrix, b: FeatureMatrix) -> float:
    if max(len(a), len(b)) <= a.shape[1]:
        return frechet_distance_of_few(a[:], b[:])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*the covariance is singular", category=UserWarning)
        return frechet_distance(a.statistics(), b.statistics())
