"""Precision, recall, density and coverage against the definitions, pair by pair."""

import numpy as np
import pytest
import torch

from ggm_image.metrics import prdc as module
from ggm_image.metrics.prdc import RealNeighbours, prdc
from tests.features import matrix_of


def definition(generated: np.ndarray, reference: np.ndarray, *, k: int = 3, open_k: int = 5) -> dict[str, float]:
    def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.array([[np.sum((x - y) ** 2) for y in b] for x in a])

    own, sampled = (np.sort(distances(side, side), axis=1) for side in (reference, generated))
    across = distances(generated, reference)
    return {
        "precision": np.mean([(row <= own[:, k]).any() for row in across]),
        "recall": np.mean([(column <= sampled[:, k]).any() for column in across.T]),
        "density": np.mean([(row < own[:, open_k]).sum() for row in across]) / open_k,
        "coverage": np.mean([across[:, i].min() < own[i, open_k] for i in range(len(reference))]),
    }


def sets(n: int, m: int, shift: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    a, b = 0.7 * rng.standard_normal((n, 4)) + shift, rng.standard_normal((m, 4))
    return a.astype(np.float32), b.astype(np.float32)


@pytest.mark.parametrize("block", [5, 7, 2048])
def test_agrees_with_the_definition(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the blocks.

    Seen to fail with the row itself counted among its neighbours, with the radii of the other side in the recall, and
    with the neighbours of the last block alone.
    """
    monkeypatch.setattr(module, "_BLOCK", block)
    generated, reference = sets(60, 45)
    found = prdc(matrix_of(generated), matrix_of(reference))
    assert found == pytest.approx(definition(generated, reference))
    assert min(found.values()) > 0
    assert found["recall"] < 1


def test_tensors_and_one_reference_for_several_sides() -> None:
    first, reference = sets(60, 45)
    neighbours = RealNeighbours(torch.from_numpy(reference))
    for generated in (first, first[:30] * 0.5):
        found = neighbours.figures(torch.from_numpy(generated))
        assert found == pytest.approx(definition(generated, reference))


def test_identical_sets() -> None:
    """Seen to fail with closed balls in the density, which then is (k + 1) / k."""
    _, reference = sets(2, 300)
    found = prdc(matrix_of(reference), matrix_of(reference))
    assert found == {"precision": 1, "recall": 1, "density": 1, "coverage": 1}


def test_sets_far_apart() -> None:
    generated, reference = sets(50, 50, shift=100)
    assert set(prdc(matrix_of(generated), matrix_of(reference)).values()) == {0}


def test_copies_are_at_no_distance() -> None:
    """Exactly, in many dimensions, where the norms cancel; and images that differ are as far apart as they are.

    Seen to fail without the rounding of small distances to zero.
    """
    rows = torch.randn(40, 512, generator=torch.Generator().manual_seed(0)) + 1
    found = module._squared_distances(rows, rows.flip(0)).flip(1)
    assert found.diagonal().tolist() == [0] * 40
    torch.testing.assert_close(found.double(), torch.cdist(rows.double(), rows.double()).square(), rtol=1e-4, atol=1e-6)
    copies = np.repeat(rows.numpy(), 10, axis=0)
    together = prdc(matrix_of(copies[::-1]), matrix_of(copies))
    assert (together["precision"], together["recall"]) == (1, 1)


def test_memory_holds_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """No matrix larger than a block by a block is made."""
    monkeypatch.setattr(module, "_BLOCK", 16)
    largest, distances = [], module._squared_distances

    def watched(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        largest.append((len(a), len(b)))
        return distances(a, b)

    monkeypatch.setattr(module, "_squared_distances", watched)
    generated, reference = sets(50, 100)
    prdc(matrix_of(generated), matrix_of(reference))
    assert max(largest) == (16, 16)
    assert sum(a * b for a, b in largest) == 50 * 50 + 100 * 100 + 50 * 100
