"""``tokenizers``, ``convert``, and commands that are given somebody's checkpoint, as somebody types them."""

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from ggm_image.tokenizers.registry import load_tokenizer, tokenizer_specs
from tests.cli.commands import refused, run
from tests.tokenizers import layouts


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GGM_IMAGE_OFFLINE", "1")
    monkeypatch.setenv("GGM_IMAGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_list(capsys: pytest.CaptureFixture[str], offline: Path) -> None:
    assert run("tokenizers") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(tokenizer_specs()) + 3
    text = (
        "For text, without weights: bytes (256 codes); any byte-level tokenizer.json, e.g. of train-tokenizer bpe-4096."
    )
    assert text in lines
    rows = [" ".join(line.split()) for line in lines]
    assert "vqgan-imagenet-f16-1024 256 16 x 16 1024 taming no 7.94 - -" in rows
    assert "ldm-vq-f4 256 64 x 64 8192 taming no 0.58 - 27.43" in rows
    assert any(line.startswith("cifar10-f4-4096 ") and " 8.3 MB" in line for line in lines)
    assert any(line.startswith("robots64-f8-2048 ") and " 6.5 MB" in line for line in lines)
    there = offline / "tokenizers" / "llamagen-ds16-c2i" / "vq_ds16_c2i.pt"
    there.parent.mkdir(parents=True)
    there.write_bytes(bytes(2_500_000))
    assert run("tokenizers", "--json") == 0
    row = {row["name"]: row for row in json.loads(capsys.readouterr().out)}["llamagen-ds16-c2i"]
    assert (row["megabytes"], row["weights"], row["grid"]) == (2.5, str(there), [16, 16])


def test_what_is_not_on_disk_is_named_offline(
    flat_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], offline: Path
) -> None:
    told = refused(capsys, run("encode", flat_folder, tmp_path / "out", "--tokenizer", "vqgan-imagenet-f16-1024"))
    assert f"put it at {offline / 'tokenizers' / 'vqgan-imagenet-f16-1024' / 'vqgan_imagenet_f16_1024.ckpt'}" in told
    assert not (tmp_path / "out").exists()
    assert not offline.exists()


def test_a_checkpoint_from_encode_to_decode(
    flat_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = layouts.taming(tmp_path / "published")
    options = ["--tokenizer", checkpoint, "--image-size", 8, "--device", "cpu"]
    assert run("encode", flat_folder, tmp_path / "tokens", *options) == 0
    assert run("decode", tmp_path / "tokens", tmp_path / "pictures", "--device", "cpu") == 0
    with Image.open(tmp_path / "pictures" / "000000.png") as image:
        assert image.size == (8, 8)
    capsys.readouterr()
    assert run("convert", checkpoint, tmp_path / "mine", "--json") == 0
    assert json.loads(capsys.readouterr().out)["family"] == "taming"
    options = ["--tokenizer", tmp_path / "mine", "--device", "cpu"]
    assert run("decode", tmp_path / "tokens", tmp_path / "again", *options) == 0
    first, second = (sorted((tmp_path / name).glob("*.png")) for name in ("pictures", "again"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_checkpoint_is_hostile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"state_dict": {"a": torch.ones(1)}, "callbacks": Hostile()}, tmp_path / "bad.ckpt")
    told = refused(capsys, run("convert", tmp_path / "bad.ckpt", tmp_path / "out"))
    assert "bad.ckpt" in told
    assert "system" in told
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.ckpt"]


def test_convert_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = layouts.diffusers_folder(tmp_path / "published", unit_range=False)
    assert run("convert", folder, tmp_path / "out", "--pixels", "0..1", "--name", "unit", "--half") == 0
    told = capsys.readouterr().out
    assert "unit, family diffusers, 512 codes" in told
    assert load_tokenizer(tmp_path / "out").name == "unit"
    assert "must be a new or an empty folder" in refused(capsys, run("convert", folder, tmp_path / "out"))
    assert "need a file or a folder" in refused(
        capsys, run("convert", "robots64-f8-2048", tmp_path / "b", "--pixels", "0..1")
    )
    assert "no such tokenizer" in refused(capsys, run("convert", tmp_path / "none.ckpt", tmp_path / "b"))
    assert "no such tokenizer" in refused(capsys, run("convert", folder, tmp_path / "b", "--like", "vqgan-f16"))
    assert run("convert", "robots64-f8-2048", tmp_path / "c") == 0
    assert load_tokenizer(tmp_path / "c").sha256 == load_tokenizer("robots64-f8-2048").sha256
