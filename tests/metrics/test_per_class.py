"""Class by class: the figures of the images of that class, and nothing else."""

import warnings

import numpy as np
import pytest

from ggm_image.metrics.fid import FeatureStatistics, frechet_distance
from ggm_image.metrics.kid import kernel_distance
from ggm_image.metrics.per_class import class_accuracy, per_class
from tests.features import CHANNELS, features_of, matrix_of


def sides(n: int, m: int, d: int = 3):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((n, d)).astype(np.float32), rng.standard_normal((m, d)).astype(np.float32)
    labels = rng.integers(0, 3, n), rng.integers(0, 3, m)
    return (a, labels[0], ["cow", "ant", "bee"]), (b, labels[1], ["ant", "bee", "dog"])


@pytest.mark.parametrize(("n", "m", "d"), [(60, 90, 3), (60, 90, 40), (10, 300, 40)])
def test_figures_of_each_class(n: int, m: int, d: int) -> None:
    """By name, whatever the labels on the two sides; with few and with many images for the features.

    Seen to fail with the label of one side used on the other.
    """
    mine, theirs = sides(n, m, d)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        table = per_class(features_of(*mine), features_of(*theirs))
        assert table is not None
        assert list(table) == ["ant", "bee"]
        for name, row in table.items():
            a = mine[0][mine[1] == mine[2].index(name)]
            b = theirs[0][theirs[1] == theirs[2].index(name)]
            assert (row["n"], row["n_reference"]) == (len(a), len(b))
            expected = frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b))
            assert row["value"] == pytest.approx(expected, rel=1e-9)
            assert row["kid"] == pytest.approx(kernel_distance(matrix_of(a), matrix_of(b))["value"], rel=1e-9)


def test_one_warning_for_all_classes() -> None:
    mine, theirs = sides(60, 90, 40)
    with pytest.warns(UserWarning, match="2 of 2 classes have no more samples than features") as caught:
        per_class(features_of(*mine), features_of(*theirs))
    assert len(caught) == 1
    table = per_class(features_of(*mine), features_of(*theirs), frechet=False)
    assert table is not None
    assert set(table["ant"]) == {"n", "n_reference", "kid"}


def test_classes_that_cannot_be_compared() -> None:
    """A single image has no covariance; sides without a class in common have no table."""
    rows = np.eye(4, 3)
    one = features_of(rows, [0, 1, 1, 1], ["ant", "bee"])
    with pytest.warns(UserWarning, match="2 of 2 classes"):
        table = per_class(one, one)
    assert table == {
        "ant": {"n": 1, "n_reference": 1, "value": None, "kid": None},
        "bee": {"n": 3, "n_reference": 3, "value": pytest.approx(0, abs=1e-9), "kid": table["bee"]["kid"]},
    }
    assert per_class(one, features_of(rows, [0, 0, 1, 1], ["cow", "dog"])) is None
    assert per_class(one, features_of(rows, [-1] * 4, [])) is None


def test_class_accuracy() -> None:
    """Seen to fail with labels of the side used as classes of the network (green is its 0 here)."""
    side = features_of(np.eye(4, 3), [0, 1, 1, 0], ["green", "red"])
    side.rows["prediction"] = [1, 2, 2, 0]
    other = features_of(np.eye(3), [0, 1, 2], ["red", "blue", "green"])
    assert class_accuracy(side, other) is None  # no classifier
    side.record["notes"]["classifier_classes"] = len(CHANNELS)
    assert class_accuracy(side, other) == 3 / 4
    assert class_accuracy(side) is None  # two names for three classes
    side.rows["label"][3] = -1
    assert class_accuracy(side, other) is None
