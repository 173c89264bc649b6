"""Runs on text: the bound on bits per byte, by enumeration, and a run from text to a model."""

import itertools
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ggm_image import load_model
from ggm_image.data.text import encode_text
from ggm_image.tokenizers.text import ByteTokenizer
from ggm_image.training.dataset import TokenSet
from ggm_image.training.run import train_generator
from ggm_image.training.text_evaluation import bits_per_byte
from tests.models import tiny_bpe

V, L = 3, 3


class ExactDenoiser:
    """The conditionals of a joint distribution over V^L."""

    def __init__(self, joint: torch.Tensor) -> None:
        self.joint = joint
        self.config = SimpleNamespace(codebook_size=V)
        self.site = SimpleNamespace(weight=torch.zeros(1))

    def __call__(self, tokens, levels, sites, labels):
        assert (levels == 1).all()
        result = torch.empty(len(tokens), len(sites), V)
        for row in range(len(tokens)):
            part = self.joint
            for i, token in enumerate(tokens[row].tolist()):
                if token != V:
                    keep = torch.zeros(V)
                    keep[token] = 1
                    part = part * keep.view(*[V if j == i else 1 for j in range(L)])
            for k, i in enumerate(sites.tolist()):
                result[row, k] = part.sum([j for j in range(L) if j != i]).log()
        return result


def test_the_bound_is_the_entropy_for_an_exact_denoiser() -> None:
    generator = torch.Generator().manual_seed(0)
    joint = torch.rand([V] * L, generator=generator).pow(3)
    joint /= joint.sum()
    counts = (joint * 3000).round().long()
    joint = counts / counts.sum()
    sequences = torch.tensor(list(itertools.product(range(V), repeat=L))).repeat_interleave(counts.flatten(), dim=0)
    entropy = float(-(joint * joint.clamp(min=1e-9).log2()).sum()) / L
    val = TokenSet(sequences.int(), torch.zeros(len(sequences), dtype=torch.int64))
    found = bits_per_byte(ExactDenoiser(joint), val, batch_size=10)  # type: ignore[arg-type]
    assert found == pytest.approx(entropy, rel=0.03)
    uniform = torch.full([V] * L, V**-L)
    worse = bits_per_byte(ExactDenoiser(uniform), val, batch_size=50)  # type: ignore[arg-type]
    assert worse == pytest.approx(math.log2(V), rel=1e-5)


def test_bits_per_byte_of_larger_pieces(tmp_path: Path) -> None:
    """The bits of a token are shared by its bytes."""
    pytest.importorskip("tokenizers")
    tokenizer = tiny_bpe(tmp_path)
    codes = torch.from_numpy(tokenizer.codes(b"the cat sat on the mat. ")).int()
    val = TokenSet(codes.expand(4, -1), torch.zeros(4, dtype=torch.int64))

    class Uniform:
        config, site = SimpleNamespace(codebook_size=266), SimpleNamespace(weight=torch.zeros(1))

        def __call__(self, tokens, levels, sites, labels):
            return torch.zeros(len(tokens), len(sites), 266)

    found = bits_per_byte(Uniform(), val, tokenizer=tokenizer)  # type: ignore[arg-type]
    assert found == pytest.approx(math.log2(266) * len(codes) / 24, rel=1e-5)
    assert bits_per_byte(Uniform(), val) == pytest.approx(math.log2(266), rel=1e-5)  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_text_curves")
def test_a_run_on_larger_pieces_keeps_its_tokenizer(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers")
    tokenizer = tiny_bpe(tmp_path)
    (tmp_path / "book.txt").write_bytes(b"the cat sat on the mat. " * 300)
    encode_text(tmp_path / "book.txt", tmp_path / "tokens", tokenizer, length=16)
    config = tmp_path / "config.yaml"
    config.write_text(
        "network: {width: 32, depth: 2, heads: 2, condition_width: 8}\ndata: {holdout: 20}\n"
        "train: {steps: 4, batch_size: 8, warmup_steps: 2, compile: false, precision: 32-true, sample_every: 4}\n"
    )
    said: list[str] = []
    model = train_generator(config, tmp_path / "tokens", tmp_path / "run", device="cpu", report=said.append)
    (bits,) = [line for line in said if "bits per byte" in line]
    assert float(bits.split("at most ")[1].split()[0]) < 8
    assert (model / "tokenizer" / "tokenizer.json").read_bytes() == tokenizer.path.read_bytes()
    tokenizer.path.unlink()
    loaded = load_model(model, device="cpu")
    assert loaded.infill("the cat ____ the mat", seed=1)[0].startswith(b"the cat ")


@pytest.mark.usefixtures("no_text_curves")
def test_from_text_to_a_model(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_bytes(b"the cat sat on the mat. " * 200)
    encode_text(tmp_path / "book.txt", tmp_path / "tokens", ByteTokenizer(), length=16)
    config = tmp_path / "config.yaml"
    config.write_text(
        "network: {width: 32, depth: 2, heads: 2, condition_width: 8}\n"
        "data: {holdout: 20}\n"
        "train: {steps: 6, batch_size: 8, warmup_steps: 2, compile: false, precision: 32-true, sample_every: 6}\n"
    )
    said: list[str] = []
    model = train_generator(config, tmp_path / "tokens", tmp_path / "run", device="cpu", report=said.append)
    assert any("held-out text: at most" in line and "bits per byte" in line for line in said)
    assert any("start_from_codes has no effect" in line for line in said)
    assert (tmp_path / "run" / "samples" / "0000006.txt").read_bytes().startswith(b"--- 0 ---\n")
    loaded = load_model(model, device="cpu")
    assert loaded.modality == "text"
    assert [len(text) for text in loaded.sample(1, preset="fast")] == [16]


@pytest.fixture
def no_text_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggm_image.training.loop.plot_at_the_end", lambda folder: None)
