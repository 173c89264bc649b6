"""The table of bounds on an enumerable joint: the exact value of exact networks is the entropy."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from tests.enumeration import all_states, potts, state_numbers
from tests.tools.small_joint import CODES, LAW, SITES
from tests.tools.test_interpolating import left_out
from tests.tools.test_rivals import MaskedTable

TOOLS = Path(__file__).parents[2] / "tools"
ENTROPY = float(-(LAW * LAW.log()).sum())


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(TOOLS / "experiments")
    module = importlib.import_module("toy_bounds")
    for name in ("toy_bounds", "compare_methods", "compare_tables", "baselines", "experiments"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return module


def test_the_exact_value_of_an_exact_masked_network_is_the_entropy(toy: ModuleType) -> None:
    """One site a call is exact."""
    network = MaskedTable(LAW, all_states(SITES, CODES))
    assert toy.sampler_nll("masked", network, LAW, CODES, 4) == pytest.approx(ENTROPY, rel=1e-9)


def test_the_exact_value_of_an_exact_duo_falls_to_the_entropy(toy: ModuleType) -> None:
    """And is never below it."""

    def network(tokens: Tensor, levels: Tensor, sites: Tensor, labels: Tensor | None) -> Tensor:
        answers = left_out("duo", round(1 - float(levels[0, 0]), 6))
        return answers[state_numbers(tokens, CODES + 1)][:, sites].log()

    few, many = (toy.sampler_nll("duo", network, LAW, CODES, calls) - ENTROPY for calls in (4, 16))
    assert few > 2 * many > 0


def test_grids_stand_in_the_shares_of_the_joint(toy: ModuleType) -> None:
    law = potts(2, 2, CODES, 1.0)
    rows = toy.in_shares(law, all_states(SITES, CODES), 10_000)
    counts = torch.bincount(state_numbers(rows, CODES), minlength=len(law))
    assert (counts - law * 10_000).abs().max() <= 0.5
    assert float(toy.joint().sum()) == pytest.approx(1)


def test_every_network_has_a_row(toy: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After two steps, and a second run trains nothing."""
    monkeypatch.setattr(toy, "ROWS", 2000)
    arguments = ["--steps", "2", "--seeds", "1", "--calls", "3", "--out", str(tmp_path / "toy")]
    assert toy.run(toy.main, arguments) == 0
    rows = json.loads((tmp_path / "toy" / "results.json").read_text())["rows"]
    law = toy.joint()
    entropy = float(-(law * law.log()).sum()) / toy.SITES
    assert [row["task"]["network"] for row in rows] == list(toy.TRAINED)
    assert all(entropy < row["sampler"] < 3 for row in rows)
    most = {"d3pm": 30}  # after two steps its posterior is still far off
    assert all(0.8 * entropy < row["bound"] < most.get(row["task"]["network"], 8) for row in rows)
    assert (tmp_path / "toy" / "toy_bounds.md").read_text().count("± 0.0000") == 2 * len(rows)
    monkeypatch.setattr(toy, "measure", None)
    assert toy.run(toy.main, arguments) == 0
