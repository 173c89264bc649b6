"""The program: how it is started, and what it refuses before torch is imported."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ggm_image.cli.main import main
from tests.models import tiny_model_folder

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import contextlib, io, json, sys
from ggm_image.cli.main import main
results = []
for arguments in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(arguments)
    results.append([code, err.getvalue(), "torch" in sys.modules])
json.dump(results, sys.stdout)
"""


def test_python_m(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "ggm_image", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    first, second, third = done.stdout.splitlines()
    assert first.startswith("ggm-image ")
    assert second.startswith("torch ")
    assert f"Python {sys.version.split()[0]}" in second
    assert third.startswith("device c")


def _beside(tmp_path: Path) -> tuple[Path, ...]:
    """Files and folders of every kind."""
    model = tiny_model_folder(tmp_path)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.yaml").write_bytes((model / "config.yaml").read_bytes())
    image, mask, photo = tmp_path / "in.png", tmp_path / "mask.png", tmp_path / "photo.png"
    for path in (image, mask, photo):
        Image.fromarray(np.full((16, 16), 200, np.uint8)).save(path)
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    (tokens / "manifest.json").write_text(json.dumps({"shards": [], "tokenizer_sha256": ""}))
    images = tmp_path / "images"
    images.mkdir()
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("mine: 1\n")
    text = tmp_path / "text"
    text.mkdir()
    (text / "notes.txt").write_text("mine")
    return model, bare, image, mask, photo, tokens, images, run, text


def _refused(tmp_path: Path) -> list[tuple[list[str], str]]:
    """Commands that cannot work, each with a part of its error, beside files that they must not touch."""
    model, bare, image, mask, photo, tokens, images, run, text = _beside(tmp_path)
    sample = ["sample", "--model", str(model)]
    inpaint = ["inpaint", str(image), str(mask), "--model", str(model)]
    signal = ["signal", str(image), "--model", str(model)]
    fid = ["fid", str(images)]
    new = str(tmp_path / "new.png")
    return [
        ([*sample, "--out", "a.bmp"], "(.png, .jpg, .webp, .tif) or a folder (got a.bmp)"),
        ([*sample, "--out", "a.jpg", "--quality", "lossless"], "JPEG is never lossless"),
        ([*sample, "--out", "a.png", "--format", "webp"], "--format belongs to a folder"),
        ([*sample, "--out", str(photo)], "was not written by this command"),
        ([*sample, "--out", str(tokens)], "was not written by this command"),
        ([*sample, "--out", new, "--trajectory", "a.mp4"], ".gif"),
        ([*sample, "--out", new, "--class", "cta"], "did you mean cat"),
        ([*sample, "--out", new, "--class", "cat,dgo"], "got 'dgo'"),
        ([*sample, "--out", new, "--preset", "quick"], "no such preset"),
        ([*sample, "--out", new, "--sweeps", "100000"], "sweeps must be"),
        ([*sample, "--out", new, "--device", "gpu"], "no such device"),
        ([*sample, "--out", new, "--seed", "1.5"], "a seed must be a whole number"),
        ([*sample, "--out", new, "--shard", "0/2"], "several processes"),
        ([*sample, "--out", str(images), "--shard", "0/2", "--overwrite"], "--overwrite needs one process"),
        (["sample", "--model", str(bare), "--out", new], "no weights"),
        (["sample", "--model", "cifar01", "--out", new], "did you mean cifar10"),
        ([*inpaint, "--out", "a.gif"], "(.png, .jpg, .webp, .tif) or a folder (got a.gif)"),
        ([*inpaint, "--out", "a.tif", "--quality", "90"], "--quality belongs to JPEG and WebP"),
        ([*inpaint, "--out", str(photo)], "was not written by this command"),
        ([*inpaint, "--out", str(image), "--overwrite"], "must not be an input"),
        ([*inpaint, "--out", str(tokens)], "was not written by this command"),
        ([*inpaint, "--out", new, "--extend", "up=3"], "sides to extend"),
        ([*inpaint, "--out", new, "--class", "cta"], "did you mean cat"),
        (["inpaint", str(tmp_path / "none.png"), str(mask), "--out", new], "none.png"),
        (["inpaint", str(image), str(tmp_path / "none.png"), "--out", new], "none.png"),
        ([*signal, "--out", "a.bmp"], "name it X.png"),
        ([*signal, "--out", str(photo)], "was not written by this command"),
        ([*signal, "--out", new, "--class", "cat,dog"], "signal takes one class"),
        ([*fid, str(tmp_path / "none")], "does not exist"),
        ([*fid, "model:cifar01"], "no such model"),
        ([*fid, f"model:{model}", "--class", "cta"], "did you mean cat"),
        ([*fid, f"model:{model}", "--preset", "quick"], "no such preset"),
        ([*fid, str(images), "--features", "none.pt"], "uint8 images (N, 3, H, W)"),
        ([*fid, str(images), "--weights", "none.pth"], "file of weights not found"),
        ([*fid, str(images), "--metrics", "fdi"], "fdi"),
        (["encode", str(images), str(text), "--tokenizer", "x"], "was not written by this command"),
        (["decode", str(tokens), str(text)], "must be a new or an empty folder"),
        (["convert", "robots64-f8-2048", str(text)], "must be a new or an empty folder"),
        (["train", "cifar01", "--data", "a", "--out", "b"], "did you mean cifar10"),
        (["train", "cifar10", "--data", "a", "--out", str(run)], "was not written by this command"),
        (["train-tokenizer", "tokenizer_cifar10", "--data", "a", "--out", str(run)], "was not written by"),
        (["plot", str(run), "--out", str(photo)], "was not written by this command"),
        (["configs", "cifar10", str(photo)], "was not written by this command"),
    ]  # fmt: skip


def test_what_is_refused_and_listed_without_torch(tmp_path: Path) -> None:
    """One process asks for everything; seen to fail at the first command where one imports torch too early."""
    refused = _refused(tmp_path)
    listed = [["models"], ["models", "--json"], ["configs"], *([c, "--help"] for c in ("sample", "fid"))]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    asked = [arguments for arguments, _ in refused] + listed
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=json.dumps(asked), cwd=ROOT, capture_output=True, text=True, check=True
    )
    results = json.loads(done.stdout)
    for (arguments, part), (code, error, has_torch) in zip(refused, results, strict=False):
        assert code == 2, (arguments, error)
        assert error.startswith("error: "), arguments
        assert error.count("\n") == 1, arguments
        assert part in error, arguments
        assert not has_torch, arguments
    for arguments, (code, _, has_torch) in zip(listed, results[len(refused) :], strict=True):
        assert (code, has_torch) == (0, False), arguments
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("command", ["sample", "inpaint", "signal", "encode", "decode", "train", "fid", "configs"])
def test_overwrite_is_offered_where_it_helps(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert ("--overwrite" in shown) == (command != "fid")
