"""The comparison with Halton-MaskGIT, on a stand-in for its checkout: a network and a sampler of its interface."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "tools" / "benchmarks"
NETWORK = """
import torch

class Transformer(torch.nn.Module):
    def __init__(self, input_size, hidden_dim, codebook_size, depth, heads, mlp_dim, nclass):
        super().__init__()
        assert mlp_dim == 4 * hidden_dim
        self.tokens = torch.nn.Embedding(codebook_size + 1, hidden_dim)
        self.classes = torch.nn.Embedding(nclass + 1, hidden_dim)

    def forward(self, codes, labels, drop):
        labels = torch.where(drop, self.classes.num_embeddings - 1, labels)
        features = self.tokens(codes.flatten(1)) + self.classes(labels)[:, None]
        return features @ self.tokens.weight.T
"""
SAMPLER = """
import torch

class HaltonSampler:
    def __init__(self, w, step):
        self.w, self.step = w, step

    def __call__(self, trainer, nb_sample, labels, verbose):
        assert not verbose
        side, args = trainer.input_size, trainer.args
        codes = torch.full((nb_sample, side, side), args.mask_value)
        drop = torch.zeros(nb_sample, dtype=torch.bool)
        for _ in range(self.step):
            with torch.no_grad(), trainer.autocast:
                both = trainer.vit(codes.repeat(2, 1, 1), labels.repeat(2), torch.cat([drop, ~drop]))
        logits = both.chunk(2)[0][..., : args.codebook_size]
        return trainer.ae.decode_code(logits.argmax(-1).view(nb_sample, side, side))
"""
SIZES = {"grid": 4, "width": 16, "depth": 1, "heads": 2, "codes": 20, "classes": 3, "repeats": 2, "device": "cpu"}
OPTIONS = ["-n", "2", *(word for name, value in SIZES.items() for word in (f"--{name}", str(value)))]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("Network", "Sampler")]:
        monkeypatch.delitem(sys.modules, name)
    return importlib.import_module("bench_vs_halton")


def checkout(folder: Path, network: str = NETWORK) -> Path:
    for name, text in {"Network/transformer.py": network, "Sampler/halton_sampler.py": SAMPLER}.items():
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_both_sample_equally_much(
    tool: ModuleType, precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(checkout(tmp_path)), *OPTIONS, "--calls", "4", "--precision", precision, "--json"]
    assert tool.run(tool.main, arguments) == 0
    found = json.loads(capsys.readouterr().out)
    ours, theirs = found["ours"], found["halton"]
    # Two matrix products of the stand-in: 4 calls, 2 images with and without their class, 16 sites, 21 codes.
    assert theirs["operations"] == 2 * 4 * 4 * 16 * 16 * 21
    assert theirs["parameters"] == 16 * (21 + 4)
    assert ours["operations"] > 0
    assert ours["images_per_second"] == pytest.approx(2 / ours["seconds"])
    assert min(ours["peak_bytes"], theirs["peak_bytes"]) > 4 * 2 * 16 * 20
    assert len(found["ratios"]) == 2


def test_what_cannot_be_compared_is_refused(
    tool: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    assert tool.run(tool.main, [str(tmp_path / "empty"), *OPTIONS, "--calls", "4"]) == 2
    assert "not a checkout of Halton-MaskGIT" in capsys.readouterr().err
    whole = checkout(tmp_path / "whole", "import no_such_package")
    assert tool.run(tool.main, [str(whole), *OPTIONS, "--calls", "4"]) == 2
    assert "no_such_package" in capsys.readouterr().err
    assert tool.run(tool.main, [str(whole), *OPTIONS, "--calls", "5"]) == 2
    assert "no block size gives so many calls (5 for 16 sites); use 4" in capsys.readouterr().err
