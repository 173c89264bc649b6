"""The comparison of models of text: calls, choice at equal entropy, and a whole run that stops and resumes."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from ggm_image.cli.main import main
from ggm_image.errors import UserError

TOOLS = Path(__file__).parents[2] / "tools"
MODULES = ["compare_text", "compare_text_methods", "compare_text_tables", "compare_methods", "compare_tables"]
MODULES += ["comparison", "baselines", "experiments"]
METHODS = ["ggm", "literal", "mdlm", "remdm", "sedd", "d3pm", "ar"]
CONFIG = """
network: {codebook_size: 256, classes: 0, grid: [1, 16], width: 16, depth: 2, heads: 2, condition_width: 8}
data: {holdout: 0}
train: {steps: 2, batch_size: 4, warmup_steps: 1, compile: false, precision: 32-true, validate_every: 0, logger: csv}
"""
TEXT = b"the cat sat on the mat, and the dog sat by the cat. " * 40


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    for folder in ("benchmarks", "experiments", "figures"):
        monkeypatch.syspath_prepend(TOOLS / folder)
    module = importlib.import_module("compare_text")
    monkeypatch.setattr(module, "tables", importlib.import_module("compare_text_tables"), raising=False)
    monkeypatch.setattr(module, "methods", importlib.import_module("compare_text_methods"), raising=False)
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    return module


class Counting:
    """Uniform logits, and how often they were asked for."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, tokens: Tensor, levels: Tensor, sites: Tensor, labels: Tensor | None) -> Tensor:
        self.calls += 1
        return torch.zeros(*(sites.shape if sites.ndim == 2 else (len(tokens), len(sites))), 256)


@pytest.mark.parametrize("calls", [8, 16, 64, 128, 512])
@pytest.mark.parametrize("method", [method for method in METHODS if method != "ar"])
def test_every_candidate_makes_exactly_the_calls_of_its_row(compare: ModuleType, method: str, calls: int) -> None:
    """On rows of 64: fewer calls than sites, as many, and more. Every method has as many candidates, all different.

    Seen to fail with revision on top of the calls of the first sweep.
    """
    found = compare.methods.text_candidates(method, calls, 64, 9)
    assert len(found) == 9
    assert all(entry not in found[:k] for k, entry in enumerate(found))
    for settings in found:
        network = Counting()
        parts = {"network": network, "grid": (1, 64), "tokenizer": SimpleNamespace(codebook_size=256)}
        model = SimpleNamespace(**parts, device=torch.device("cpu"), null_label=0, half=False)
        generators = [torch.Generator().manual_seed(k) for k in range(2)]
        tokens = compare.draw_text(method, model, calls, settings, torch.zeros(2).long(), generators)
        assert network.calls == calls, settings
        assert tokens.shape == (2, 64)
        assert 0 <= int(tokens.min()) <= int(tokens.max()) < 256


def test_settings_are_as_many_for_every_method_and_cover_the_temperatures(compare: ModuleType) -> None:
    """Every sampler has three temperatures at least, from end to end. Seen to fail with a temperature a structure."""
    low, high = compare.TEMPERATURES
    for method in METHODS:
        calls = 64 if method == "ar" else 16
        for count in (3, 9, 10):
            found = compare.methods.text_candidates(method, calls, 64, count)
            assert len(found) == count
            structures = [json.dumps(compare.tables.structure_of(entry)) for entry in found]
            for structure in set(structures):
                own = [e["temperature"] for e, s in zip(found, structures, strict=True) if s == structure]
                assert len(own) >= 3
                assert (min(own), max(own)) == (low, high)
    assert compare.methods.text_candidates("ar", 32, 64, 9) == []


def tuned(compare: ModuleType, path: Path, rows: list[tuple]) -> ModuleType:
    """Results with held-out text of entropy 4 and rows of (stage, method, calls, seed, structure, T, entropy, ppl)."""
    results = compare.Results(path, {"length": 64})
    text = {"perplexity": 5.0, "byte_entropy": 4.0, "known_words": 0.98, "n": 9}
    results.add({"task": {"stage": "text", "n": 9}, **text})
    for stage, method, calls, seed, structure, temperature, entropy, perplexity in rows:
        task = {"stage": stage, "method": method, "network": "x", "calls": calls, "seed": seed, "n": 6}
        task["settings"] = {**structure, "temperature": temperature}
        row = {"byte_entropy": entropy, "perplexity": perplexity, "known_words": entropy / 10, "seconds_per_text": 2.0}
        results.add({"task": task, **row})
    return compare.tables.TextTuning(results, 9, 6)


def test_a_figure_at_an_entropy_lies_on_the_line_between_its_neighbours(compare: ModuleType) -> None:
    """By hand: half-way between perplexities 4 and 16 is 8; outside it is that of the end.

    Seen to fail with a mean of the perplexities in the place of their logarithms.
    """
    entropies, perplexities = (4.2, 3.0, 3.8), (16.0, 1.0, 4.0)
    rows = [
        {"byte_entropy": e, "perplexity": p, "known_words": e / 10, "task": {"settings": {"temperature": e}}}
        for e, p in zip(entropies, perplexities, strict=True)
    ]
    at = compare.tables.at_entropy
    assert at(rows, "perplexity", 4.0) == pytest.approx((8.0, 4.0))
    assert at(rows, "known_words", 4.0) == pytest.approx((0.4, 4.0))
    assert at(rows, "temperature", 4.0)[0] == pytest.approx((3.8 * 4.2) ** 0.5)
    assert at(rows, "perplexity", 5.0) == pytest.approx((16.0, 4.2))
    assert at(rows, "perplexity", 1.0) == pytest.approx((1.0, 3.0))


def test_the_sampler_of_least_perplexity_at_the_texts_entropy_is_chosen(compare: ModuleType, tmp_path: Path) -> None:
    """Not that of the least perplexity, which its low entropy buys; and not one that does not reach the entropy.

    Seen to fail with the least perplexity of all, and with the samplers that do not reach the entropy among the others.
    """
    linear, cosine = {"curve": "linear"}, {"curve": "cosine"}
    settings = [(1.0, 3.8), (1.2, 4.1)]
    rows = [("tune", "mdlm", 16, 0, linear, t, e, 9.0 + e) for t, e in settings]
    rows += [("tune", "mdlm", 16, 0, cosine, t, e, 8.0 + e) for t, e in settings]
    rows += [("tune", "mdlm", 32, 0, linear, 1.0, 3.9, 1.0)]  # of other calls
    tuning = tuned(compare, tmp_path / "a.json", rows)
    chosen = tuning.chosen("mdlm", 16)
    assert [entry["curve"] for entry in chosen] == ["cosine"] * 3
    middle = float(np.exp(np.interp(4.0, [3.8, 4.1], np.log([1.0, 1.2]))))
    assert [entry["temperature"] for entry in chosen] == [round(middle * f, 4) for f in (1 / 1.12, 1, 1.12)]
    assert tuning.chosen("sedd", 16) == []
    rows += [("tune", "mdlm", 16, 0, cosine, 0.9, 3.0, 0.1)]  # low perplexity, low entropy
    assert tuned(compare, tmp_path / "b.json", rows).chosen("mdlm", 16) == chosen
    short = [("tune", "mdlm", 16, 0, cosine, t, e - 0.5, 1.0) for t, e in settings]
    short += [row for row in rows if row[4] == linear]
    assert tuned(compare, tmp_path / "c.json", short).chosen("mdlm", 16)[0]["curve"] == "linear"


def test_the_table_has_the_figures_at_the_texts_entropy(compare: ModuleType, tmp_path: Path) -> None:
    """Mean and deviation over the seeds, a note where the entropy is not reached, and who is ahead."""
    bayer = compare.methods.text_structures("ggm", 16, 64)[0]
    rows = []
    for method, structure, factor, shift in [("ggm", bayer, 1.0, 0.0), ("mdlm", {"curve": "linear"}, 2.0, -0.3)]:
        rows += [("tune", method, 16, 0, structure, t, 4.0 + t - 1, 5.0) for t in (0.9, 1.0, 1.1)]
        for seed, t in [(0, 0.8929), (0, 1.0), (0, 1.12), (1, 0.8929), (1, 1.0), (1, 1.12)]:
            value = factor * (6.0 + seed) * np.exp(t - 1)
            rows.append(("final", method, 16, seed, structure, t, 4.0 + t - 1 + shift, value))
    tuning = tuned(compare, tmp_path / "results.json", rows)
    text = compare.report(tuning, [16], 6, tmp_path)
    assert "| GGM | 6.50 ± 0.71 |" in text
    assert f"| MDLM | {13 * np.exp(0.12):.2f} ± {1.41 * np.exp(0.12):.2f} (-0.18) |" in text
    assert f"GGM's perplexity is {13 * np.exp(0.12) - 6.5:.2f} below that of MDLM." in text
    assert "| GGM | 40.0 ± 0.0 |" in text
    assert "| MDLM | 1.00 |" in text
    assert (tmp_path / "compare.md").read_text() == text
    assert (tmp_path / "compare.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_whole_comparison_and_its_resumption(
    compare: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trains, tunes, samples, reports; a second run does nothing again; other protocols and tokens are refused."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    for name in ("train", "val"):
        (tmp_path / f"{name}.txt").write_bytes(TEXT)
        source, out = str(tmp_path / f"{name}.txt"), str(tmp_path / name)
        assert main(["encode", source, out, "--tokenizer", "bytes", "--length", "16"]) == 0
    out = tmp_path / "compare"
    arguments = [str(tmp_path / "train"), str(tmp_path / "val"), "--config", str(tmp_path / "config.yaml")]
    arguments += ["--seeds", "2", "--calls", "8", "--settings-per-method", "3", "--tune", "6", "-n", "4"]
    arguments += ["--val-rows", "20", "--processes", "0", "--out", str(out)]
    assert compare.run(compare.main, arguments) == 0
    saved = json.loads((out / "results.json").read_text())
    stages = {stage: [r for r in saved["rows"] if r["task"]["stage"] == stage] for stage in ("train", "tune", "final")}
    names = [row["task"]["network"] for row in stages["train"]]
    assert sorted(names) == sorted(["reference", *(["ggm", "literal", "mdlm", "sedd", "d3pm", "ar"] * 2)])
    assert all(row["images"] == 8 and 1 < row["bits_per_byte"] < 200 for row in stages["train"])
    for stage, seeds in (("tune", 1), ("final", 2)):
        counts = [(row["task"]["method"], row["task"]["calls"]) for row in stages[stage]]
        assert {case: counts.count(case) for case in counts} == {
            (method, 16 if method == "ar" else 8): 3 * seeds for method in METHODS
        }
    assert not {row["task"]["draws"] for row in stages["tune"]} & {row["task"]["draws"] for row in stages["final"]}
    assert all(2 < row["perplexity"] < 2000 and 0 < row["byte_entropy"] <= 4 for row in stages["final"])
    report = (out / "compare.md").read_text()
    assert report.count("- 8 calls: GGM's perplexity is") == 1
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
    assert compare.run(compare.main, [*arguments, "--methods", "gmm"]) == 2
    assert compare.run(compare.main, [*arguments, "--calls", "8,x"]) == 2


def test_only_bytes_in_rows_of_one_length_are_compared(compare: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(TEXT)
    for name, length in (("a", "16"), ("b", "32")):
        assert (
            main(
                ["encode", str(tmp_path / "text.txt"), str(tmp_path / name), "--tokenizer", "bytes", "--length", length]
            )
            == 0
        )
    assert compare.check_bytes(tmp_path / "a", tmp_path / "a").grid == (1, 16)
    with pytest.raises(UserError, match="rows of one length"):
        compare.check_bytes(tmp_path / "a", tmp_path / "b")
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    manifest["tokenizer_sha256"] = "0" * 64
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="tokenizer bytes"):
        compare.check_bytes(tmp_path / "a", tmp_path / "b")
