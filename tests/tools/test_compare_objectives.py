"""The comparison of objectives: every candidate costs what it says, and the whole of it runs, stops and resumes."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ggm_image.cli.main import main
from ggm_image.errors import UserError
from tests.models import tiny_tokenizer_folder

TOOLS = Path(__file__).parents[2] / "tools"
CONFIG = """
network: {codebook_size: 32, classes: 3, grid: [4, 4], width: 32, depth: 2, heads: 2, condition_width: 8}
train: {steps: 2, batch_size: 4, warmup_steps: 1, compile: false, precision: 32-true}
"""


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for folder in ("benchmarks", "experiments", "figures"):
        monkeypatch.syspath_prepend(TOOLS / folder)
    module = importlib.import_module("compare_objectives")
    names = ("compare_objectives", "compare_methods", "compare_tables", "comparison", "baselines", "experiments")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return module


METHODS = ["ggm", "literal", "maskgit", "halton", "critic", "remdm-cap", "remdm-rescale", "remdm-conf", "remdm-loop"]
METHODS += ["d3pm", "sedd", "gidd", "duo"]


class Counting:
    """Uniform logits, and how often they were asked for."""

    def __init__(self) -> None:
        self.calls = self.rows = 0

    def __call__(self, tokens: Tensor, levels: Tensor, sites: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        self.rows += len(tokens)
        return torch.zeros(*(sites.shape if sites.ndim == 2 else (len(tokens), len(sites))), 7)


@pytest.mark.parametrize("guidance", [False, True])
@pytest.mark.parametrize("calls", [4, 8, 63, 64])
@pytest.mark.parametrize("method", METHODS)
def test_every_candidate_makes_exactly_the_calls_of_its_row(
    compare: ModuleType, method: str, calls: int, guidance: bool
) -> None:
    """On 8 x 8 sites, and with guidance about twice as many rows. Every method has as many candidates, all different.

    Seen to fail with the revising sweep's calls on top of the others.
    """
    found = compare.candidates(method, calls, 64, 6, guidance=guidance)
    if method == "literal" and calls == 63:
        assert found == []  # its blocks do not divide the sweep
        return
    assert len(found) == 6
    assert all(entry not in found[:k] for k, entry in enumerate(found))
    assert found[0]["temperature"] == 1
    assert all(("guidance" in entry) == guidance for entry in found)
    for settings in found:
        network = Counting()
        tokenizer = SimpleNamespace(codebook_size=7)
        parts = {"network": network, "grid": (8, 8), "tokenizer": tokenizer, "null_label": 9}
        model = SimpleNamespace(**parts, device=torch.device("cpu"))
        generators = [torch.Generator().manual_seed(k) for k in range(2)]
        tokens = compare.draw(method, model, calls, settings, torch.tensor([0, 1]), generators)
        assert network.calls == calls, settings
        # where the weight grows from 1, calls before the first token ask for the class alone
        assert network.rows == 2 * calls or (guidance and 3 * calls < network.rows <= 4 * calls), settings
        assert not guidance or network.rows > 2 * calls
        assert tokens.shape == (2, 64)
        assert 0 <= int(tokens.min()) <= int(tokens.max()) < 7


@pytest.mark.parametrize("method", METHODS)
def test_methods_of_one_sweep_stop_at_a_call_a_site(compare: ModuleType, method: str) -> None:
    found = compare.candidates(method, 128, 64, 6)
    assert bool(found) == (method not in ("maskgit", "halton"))


def test_candidates_cover_what_there_is(compare: ModuleType) -> None:
    """Every structure of every method is tried, and the temperature from end to end.

    Seen to fail with a coordinate of the sequence for the structure.
    """
    methods = importlib.import_module("compare_methods")
    for method in METHODS:
        structures = methods.structures(method, 16, 64)
        found = compare.candidates(method, 16, 64, 16, guidance=True)
        for structure in structures:
            assert any(structure.items() <= entry.items() for entry in found), (method, structure)
        temperatures = sorted(entry["temperature"] for entry in found)
        assert temperatures[0] < 0.48
        assert temperatures[-1] > 1.05
        assert {entry["guidance_power"] for entry in found} == set(methods.POWERS)


class Means(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float().mean(dim=[2, 3])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_the_whole_comparison_and_its_resumption(
    compare: ModuleType, class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trains, tunes, draws, reports; a second run does nothing again; another protocol is refused."""
    for name in ("means", "again"):
        torch.jit.script(Means()).save(str(tmp_path / f"{name}.pt"))
    (tmp_path / "config.yaml").write_text(CONFIG)
    tokenizer = tiny_tokenizer_folder(tmp_path / "tokenizer")
    assert main(["encode", str(class_folder), str(tmp_path / "tokens"), "--tokenizer", str(tokenizer)]) == 0
    monkeypatch.setattr(compare, "BATCH", 6)
    monkeypatch.setattr(compare, "FINALISTS", 2)
    tokens, out = str(tmp_path / "tokens"), tmp_path / "compare"
    arguments = [tokens, tokens, str(class_folder), "--config", str(tmp_path / "config.yaml")]
    arguments += ["--features", str(tmp_path / "means.pt"), "--features", str(tmp_path / "again.pt")]
    arguments += ["--seeds", "2", "--calls", "8", "--settings-per-method", "3", "--tune", "6"]
    arguments += ["--tune-again", "7", "-n", "8", "--processes", "0", "--out", str(out)]
    assert compare.run(compare.main, arguments) == 0
    saved = json.loads((out / "results.json").read_text())
    protocol = saved["protocol"]
    assert (protocol["tuning_images"], protocol["figure_images"]) == (6, 6)
    finals = [row for row in saved["rows"] if row["task"]["stage"] == "final"]
    assert sorted((t["method"], "guidance" in t["settings"], t["seed"]) for t in (row["task"] for row in finals)) == [
        (m, guided, s) for m in sorted(METHODS) for guided in (False, True) for s in (0, 1)
    ]
    for n, count in ((6, 3), (7, 2)):
        tuned = [row["task"] for row in saved["rows"] if row["task"]["stage"] == "tune" and row["task"]["n"] == n]
        assert {m: sum(task["method"] == m for task in tuned) for m in METHODS} == dict.fromkeys(METHODS, 2 * count)
    trained = [row for row in saved["rows"] if row["task"]["stage"] == "train"]
    assert len(trained) == 2 * len(compare.TRAINED)
    assert all(row["images"] == 8 and 2 < row["bound"] < 80 for row in trained)
    report = (out / "compare.md").read_text()
    names = ("precision", "recall", "density", "coverage")
    assert all(row["figures"][k][name] >= 0 for row in finals for name in names for k in range(2))
    assert all(row["distance"] == row["figures"][0]["distance"] for row in finals)
    assert "3 settings tried" in report
    assert "against 6 reference images" in report
    assert report.count("- 8 calls: GGM is") == 4
    assert (out / "compare.png").stat().st_size > 10_000
    (out / "compare.md").unlink()
    assert compare.run(compare.main, [*arguments, "--report-only"]) == 0
    assert (out / "compare.md").read_text() == report

    def forbidden(*_: object) -> None:
        raise AssertionError("done twice")

    monkeypatch.setattr(compare, "score", forbidden)
    monkeypatch.setattr(compare, "train", forbidden)
    assert compare.run(compare.main, arguments) == 0
    assert json.loads((out / "results.json").read_text()) == saved
    assert compare.run(compare.main, [*arguments, "train.batch_size=3"]) == 2
    assert compare.run(compare.main, [*arguments, "--tuning-share", "0.4"]) == 2
    assert compare.run(compare.main, [*arguments, "--methods", "gmm"]) == 2
    assert compare.run(compare.main, [*arguments, "--calls", "8,x"]) == 2


def test_the_reference_is_split_by_class(compare: ModuleType) -> None:
    """The parts share no image, hold all of them, and have the same share of each class."""
    labels = np.array([0] * 10 + [1] * 8 + [2] * 2)
    pixels = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(20, 3, 2, 2)
    images = compare.Images(pixels, labels, ["a", "b", "c"])
    tuning, others = compare.split_reference(images, 0.5)
    assert np.bincount(tuning.labels).tolist() == np.bincount(others.labels).tolist() == [5, 4, 1]
    assert sorted([*tuning.pixels[:, 0, 0, 0].tolist(), *others.pixels[:, 0, 0, 0].tolist()]) == list(range(20))
    with pytest.raises(UserError, match="both parts"):
        compare.split_reference(images, 0.2)


def test_chosen_settings_are_those_of_the_least_distance(
    compare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same method, calls and images, round by round; the table has their figures and no others'.

    Seen to fail with max, with the calls left out, with settings that were tuned with another number of images, with
    those that are no candidates, and with figures of all settings.
    """
    results = compare.Results(tmp_path / "results.json", {"tuning_images": 6, "figure_images": 7})
    for method, calls, n, t, distance in [
        ("ggm", 8, 100, 1.0, 3.0),
        ("ggm", 8, 100, 0.8, 2.0),
        ("ggm", 8, 100, 0.6, 2.5),
        ("ggm", 8, 100, 0.4, 0.1),
        ("ggm", 8, 200, 0.9, 1.5),
        ("ggm", 8, 200, 0.8, 1.4),
        ("ggm", 8, 200, 0.6, 1.3),
        ("ggm", 16, 100, 0.7, 1.0),
        ("halton", 8, 100, 0.6, 0.5),
    ]:
        task = {"stage": "tune", "method": method, "calls": calls, "n": n, "settings": {"temperature": t}}
        results.add({"task": task, "distance": distance})
    every = [{"temperature": t} for t in (1.0, 0.9, 0.8, 0.7, 0.6)]
    monkeypatch.setattr(compare, "candidates", lambda method, calls, sites, count, guidance: every)

    def left(method: str, rounds: list[tuple[int, int]]) -> list[dict]:
        return compare.Tuning(results, 64, 5, rounds).left(method, 8, False)

    assert left("ggm", []) == every
    assert left("ggm", [(100, 2)]) == [{"temperature": 0.8}, {"temperature": 0.6}]
    assert left("ggm", [(100, 2), (200, 1)]) == [{"temperature": 0.6}]
    assert left("sedd", [(100, 2)]) == []
    for method, t, seed, distance in [
        ("ggm", 0.8, 0, 9.0),
        ("ggm", 0.6, 0, 1.0),
        ("ggm", 0.6, 1, 3.0),
        ("halton", 0.6, 0, 2.5),
    ]:
        task = {"stage": "final", "method": method, "calls": 8, "n": 500, "seed": seed, "settings": {"temperature": t}}
        shares = dict.fromkeys(("precision", "recall", "density", "coverage"), 0.5)
        figures = [{"features": "means", "distance": distance, **shares, "class_accuracy": None}]
        results.add({"task": task, "distance": distance, "figures": figures})
    tuning = compare.Tuning(results, 64, 5, [(100, 2), (200, 1)])
    found = tuning.figures([8, 16], False, 500)
    assert {key: [row["distance"] for row in rows] for key, rows in found.items()} == {("ggm", 8): [1.0, 3.0]}
    again = {"stage": "tune", "method": "halton", "calls": 8, "n": 200, "settings": every[4]}
    results.add({"task": again, "distance": 1.0})
    text = compare.figure_tables(tuning.figures([8], False, 500), [8])
    assert "| GGM | **2.00 ± 1.41** |" in text
    assert "| masked, Halton order | 2.50 |" in text
    assert "| GGM | 0.50, 0.50, 0.50, 0.50, - |" in text
    assert "GGM is 0.50 ahead of the best rival, masked, Halton order, within the deviation over seeds of 1.41" in text
    again = compare.Results(tmp_path / "results.json", results.protocol)
    assert again.rows == results.rows
    with pytest.raises(UserError, match="another protocol"):
        compare.Results(tmp_path / "results.json", {"minutes": 3})
