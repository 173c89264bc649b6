"""``encode`` and ``decode`` as they are typed."""

import json
import re
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from ggm_image.data.sources import tar_stream
from ggm_image.errors import UserError
from ggm_image.tokenizers import registry
from tests.cli.commands import refused, run
from tests.conftest import MeanTokenizer
from tests.data.shards import png, write_shards, write_tar


@pytest.fixture(autouse=True)
def known_tokenizers(monkeypatch: pytest.MonkeyPatch) -> None:
    """``mean`` and ``other`` in place of trained weights."""

    def load(name: str, *, device: str = "cpu") -> MeanTokenizer:
        if str(name) == "mean":
            return MeanTokenizer(name="mean")
        if str(name) == "other":
            return MeanTokenizer(name="other", sha256="ab" * 32)
        raise UserError("no such tokenizer", f"got {name!r}", "known: mean, other")

    class Spec:
        name = "mean"

    monkeypatch.setattr(registry, "load_tokenizer", load)
    monkeypatch.setattr(registry, "tokenizer_specs", lambda: [Spec()])


def test_encode_report_decode(class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache, out = tmp_path / "cache", tmp_path / "out"
    assert run("encode", class_folder, cache, "--tokenizer", "mean", "--report", "--device", "cpu") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "12 images as 2 x 2 tokens, 3 classes" in captured.out
    assert "PSNR" in captured.out
    assert "perplexity" in captured.out
    assert "chequered cells 0.000% (originals 0.000%), images 0.0% (originals 0.0%)" in captured.out
    assert {"report.png", "report.json", "manifest.json"} <= {p.name for p in cache.iterdir()}
    assert run("decode", cache, out, "--device", "cpu", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(out), "count": 12}
    assert len(list(out.rglob("*.png"))) == 12


def test_encode_json_and_skip_bad(class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (class_folder / "bee" / "2.png").write_text("text")
    options = ["--tokenizer", "mean", "--flip", "--skip-bad", "--image-size", 16, "--report", "--json"]
    assert run("encode", class_folder, tmp_path / "cache", *options) == 0
    captured = capsys.readouterr()
    assert captured.err.count("skipped: ") == 1
    assert "bee/2.png" in captured.err
    result = json.loads(captured.out)
    assert (result["count"], result["skipped"], result["grid"]) == (22, ["bee/2.png"], [4, 4])
    assert result["report"]["images"] == 22


def test_encode_shifts(class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (class_folder / "bee" / "2.png").write_text("text")
    options = ["--tokenizer", "mean", "--flip", "--skip-bad", "--json"]
    assert run("encode", class_folder, tmp_path / "cache", *options, "--shifts", 2) == 0
    captured = capsys.readouterr()
    assert captured.err.count("skipped: ") == 1
    result = json.loads(captured.out)
    assert (result["count"], result["skipped"]) == (66, ["bee/2.png"])
    for shifts, part in [(9, "must lie in [0, 8] for images of 8 pixels"), (-1, "-1"), (10**30, "must lie in")]:
        refused(capsys, run("encode", class_folder, tmp_path / "other", *options, "--shifts", shifts), part)
        assert not (tmp_path / "other").exists()


def test_images_that_changed_and_labels_by_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {f"{k}.{suffix}": data for k in range(3) for suffix, data in (("png", png(k)), ("txt", b"owl"))}
    files["._0.png"] = b"notes"
    tar, cache = write_tar(tmp_path / "a.tar", files), tmp_path / "cache"
    options = ["--tokenizer", "mean", "--label-key", ".txt"]
    assert run("encode", tar, cache, *options) == 0
    captured = capsys.readouterr()
    assert "3 images as 2 x 2 tokens, 1 classes" in captured.out
    assert "labels from the .txt files, the first is 'owl'" in captured.err
    assert "left out 1 file or folder of the operating system (e.g. ._0.png)" in captured.err
    assert run("encode", tar, cache, "--label-key", ".txt", "--verify") == 0
    assert f"every image of {tar} is the one that was encoded" in capsys.readouterr().out
    write_tar(tar, {**files, "1.png": png(9)})
    assert run("encode", tar, cache, *options) == 2
    assert "error: images have changed since they were encoded" in capsys.readouterr().err
    assert run("encode", tar, cache, *options, "--overwrite") == 0
    assert run("encode", tar, cache, "--label-key", ".txt", "--verify") == 0


def test_a_reduction_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen to fail: photos became thumbnails, and the summary spoke of tokens alone."""
    (tmp_path / "photos").mkdir()
    for k in range(3):
        Image.new("RGB", (60 + k, 40)).save(tmp_path / "photos" / f"{k}.png")
    spec = SimpleNamespace(name="larger", image_size=36, grid=9, codebook_size=256, data="ImageNet", reported={})
    monkeypatch.setattr(registry, "tokenizer_specs", lambda: [spec])
    assert run("encode", tmp_path / "photos", tmp_path / "a", "--tokenizer", "mean") == 0
    line = "note: images of 61 x 40 pixels (median) are reduced to 8 x 8; to keep more: "
    line += "--image-size 40 (10 x 10 tokens) or --tokenizer larger (36 pixels, 9 x 9 tokens)\n"
    assert capsys.readouterr().err == line
    shards = write_tar(tmp_path / "a.tar", {"a.png": (tmp_path / "photos/1.png").read_bytes(), "a.cls": b"0"})
    assert run("encode", shards, tmp_path / "b", "--tokenizer", "mean") == 0
    assert line in capsys.readouterr().err
    assert run("encode", tmp_path / "photos", tmp_path / "c", "--tokenizer", "mean", "--image-size", 40) == 0
    assert capsys.readouterr().err == ""


def test_report_with_features(class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Colours(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().mean(dim=(2, 3))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Colours()).save(str(tmp_path / "colours.pt"))
    options = ["--tokenizer", "mean", "--report", "--features", tmp_path / "colours.pt", "--device", "cpu"]
    assert run("encode", class_folder, tmp_path / "cache", *options) == 0
    told = capsys.readouterr().out
    assert "rFD (colours) " in told
    assert "worst: " in told
    assert (tmp_path / "cache" / "worst.png").is_file()
    options = [*options, "--reference", class_folder / "bee"]
    assert run("encode", class_folder, tmp_path / "referred", *options) == 0
    told = capsys.readouterr().out
    assert f"FD (colours) to 5 images of {class_folder / 'bee'}: reconstructions " in told
    assert re.search(r"originals \d+\.\d{4}, excess -?\d+\.\d{4}\n", told)
    refused(
        capsys,
        run("encode", class_folder, tmp_path / "c", "--tokenizer", "mean", "--features", "inception"),
        "--features belongs to --report",
    )
    wrong = ["--tokenizer", "mean", "--report", "--reference", tmp_path / "nowhere"]
    refused(capsys, run("encode", class_folder, tmp_path / "c", *wrong), "--reference belongs to --features")
    code = run("encode", class_folder, tmp_path / "c", *wrong, "--features", tmp_path / "colours.pt")
    refused(capsys, code, "does not exist", "nowhere")
    assert not (tmp_path / "c").exists()


def test_bad_sources(class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.png").write_text("no image")
    (tmp_path / "file.txt").write_text("no image")
    out = tmp_path / "out"
    for name, wanted in [
        ("nowhere", "does not exist"),
        ("empty", "no images found"),
        ("text", "a.png"),
        ("text/a.png", "a.png"),
        ("file.txt", "file.txt"),
    ]:
        code = run("encode", tmp_path / name, out, "--tokenizer", "mean")
        refused(capsys, code, wanted)
        assert not out.exists()
    refused(capsys, run("encode", class_folder, out, "--tokenizer", "maen"), "known: mean")
    refused(capsys, run("encode", class_folder, out, "--tokenizer", "mean", "--image-size", 10), "--image-size 8")
    refused(capsys, run("encode", class_folder, class_folder, "--tokenizer", "mean"), "token cache")
    assert not out.exists()


def test_shares_of_a_webdataset_and_their_proof(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern, cache, whole = write_shards(tmp_path / "shards"), tmp_path / "cache", tmp_path / "whole"
    options = ["--tokenizer", "mean", "--device", "cpu"]
    assert run("encode", pattern, cache, *options, "--shard", "1/2") == 0
    assert "share 1/2 is done, 3 shards are left" in capsys.readouterr().out
    assert run("encode", pattern, cache, *options, "--shard", "1/3", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(cache), "left": 2}
    refused(capsys, run("encode", pattern, cache, "--verify"), "not finished", "3 of 5 shards")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert run("encode", pattern, cache, *options) == 0
    assert "15 images as 2 x 2 tokens, 3 classes" in capsys.readouterr().out
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert run("encode", f"pipe:cat {pattern}", whole, *options, "--classes", 3) == 0
    capsys.readouterr()
    for arguments in ([pattern, cache], [cache], [f"pipe:cat {pattern}", whole, *options]):
        assert run("encode", *arguments, "--verify") == 0
        assert "15 images in 5 shards: every SHA-256" in capsys.readouterr().out
    assert run("encode", cache, "--verify", "--json") == 0
    assert json.loads(capsys.readouterr().out)["distinct"] == "keys"
    data = bytearray((cache / "tokens-00003.safetensors").read_bytes())
    data[-1] ^= 1
    (cache / "tokens-00003.safetensors").write_bytes(data)
    refused(capsys, run("encode", cache, "--verify"), "shard is damaged", "tokens-00003")


def test_bad_streams(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_stream, "PAUSE", 0.0)
    pattern, out = write_shards(tmp_path / "shards"), tmp_path / "out"
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    options = ["--tokenizer", "mean"]
    for arguments, wanted in [
        ([pattern.replace("004", "005"), out, *options], "005.tar"),
        ([f"pipe:cat {pattern}; exit 3", out, *options], "failed with code 3"),
        (["nosuch://x/{0..3}.tar", out, *options], "fsspec cannot open"),
        (["http://127.0.0.1:1/0.tar", out, *options], "http://127.0.0.1:1/0.tar"),
        (["hub:a:b:c", out, *options], "a data set is written hub:NAME"),
        ([pattern, out, *options, "--classes", tmp_path / "names.txt"], "class must lie in [0, 2)"),
        ([pattern, out, *options, "--classes", "none"], "a file with a name a line"),
        ([pattern, out, *options, "--shard", "2/2"], "from 0 to n - 1"),
        ([pattern, out, *options, "--report"], "--report needs one process"),
        ([pattern, out], "option is missing (--tokenizer)"),
        ([pattern], "argument is missing (OUT)"),
        ([out, "--verify"], "does not exist"),
    ]:
        refused(capsys, run("encode", *arguments), wanted)
        assert not out.exists(), arguments


def test_the_wrong_tokenizer(class_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache, out = tmp_path / "cache", tmp_path / "out"
    assert run("encode", class_folder, cache, "--tokenizer", "mean") == 0
    before = (cache / "manifest.json").read_bytes()
    capsys.readouterr()
    refused(capsys, run("encode", class_folder, cache, "--tokenizer", "other"), "another request")
    assert (cache / "manifest.json").read_bytes() == before
    refused(capsys, run("decode", cache, out, "--tokenizer", "other"), "made with mean 5e5e")
    (cache / "manifest.json").write_text(before.decode().replace('"mean"', '"lost"'))
    refused(capsys, run("decode", cache, out), "lost", "--tokenizer")
    refused(capsys, run("decode", tmp_path / "nowhere", out), "does not exist")
    refused(capsys, run("decode", class_folder, out), "manifest.json")
    assert not out.exists()


def test_one_pixel_sixteen_bits_and_cmyk(tmp_path: Path) -> None:
    source = tmp_path / "src"
    source.mkdir()
    Image.new("RGB", (1, 1), "red").save(source / "a.png")
    Image.new("I;16", (9, 12), 40000).save(source / "b.png")
    Image.new("CMYK", (20, 9), (0, 200, 0, 0)).save(source / "c.jpg")
    assert run("encode", source, tmp_path / "cache", "--tokenizer", "mean", "--report") == 0
