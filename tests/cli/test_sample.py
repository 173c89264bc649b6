"""``sample`` as it is typed: files, folders, classes, processes and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.commands import pixels, refused, run
from tests.faults.harness import digests


def test_sample_grid_and_folder_agree(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("--model", model, "--class", "dog", "--preset", "fast", "--seed", 3)
    assert run("sample", *common, "-n", 4, "--out", tmp_path / "grid.png") == 0
    assert "4 images" in capsys.readouterr().out
    assert run("sample", *common, "-n", 6, "--out", tmp_path / "files", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    manifest = json.loads((tmp_path / "files" / "manifest.json").read_text())
    assert manifest["settings"] == told["settings"]
    assert manifest["classes"] == ["dog"] * 6
    assert (manifest["seed"], manifest["count"]) == (3, 6)
    assert len(manifest["model_sha256"]) == len(manifest["tokenizer_sha256"]) == 64
    grid = pixels(tmp_path / "grid.png")
    assert grid.shape == (32, 32, 3)
    for k in range(4):
        top, left = 16 * (k // 2), 16 * (k % 2)
        assert np.array_equal(grid[top : top + 16, left : left + 16], pixels(tmp_path / "files" / f"{k:06d}.png"))
    assert len(list((tmp_path / "files").glob("*.png"))) == 6


def test_sample_by_several_processes(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By number, or as torchrun says. Who comes first says what is missing; the files are one process's."""
    arguments = ("sample", "--model", model, "-n", 40, "--preset", "fast", "--device", "cpu")
    assert run(*arguments, "--out", tmp_path / "one") == 0
    capsys.readouterr()
    assert run(*arguments, "--out", tmp_path / "two", "--shard", "0/2") == 0
    first = capsys.readouterr().out.splitlines()
    assert "share 0/2, 24 of 40 images sampled" in first[0]
    assert first[1].startswith("16 images are missing")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run(*arguments, "--out", tmp_path / "two", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["share"], told["drawn"], told["missing"], told["count"]) == ("1/2", 16, 0, 40)
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
    assert "several processes" in refused(capsys, run(*arguments, "--out", tmp_path / "grid.png"))
    assert "i from 0 to n - 1" in refused(capsys, run(*arguments, "--out", tmp_path / "two", "--shard", "2/2"))
    assert "seed is 0, now 1" in refused(capsys, run(*arguments, "--out", tmp_path / "two", "--seed", 1))


def test_one_image(model: Path, tmp_path: Path) -> None:
    assert run("sample", "--model", model, "-n", 1, "--preset", "fast", "--out", tmp_path / "one.png") == 0
    assert pixels(tmp_path / "one.png").shape == (16, 16, 3)


def test_classes_take_turns(model: Path, tmp_path: Path) -> None:
    """Given twice or with a comma: image k is of class k mod 2. Seen to fail with the last --class alone."""
    common = ("sample", "--model", model, "-n", 5, "--preset", "fast", "--seed", 3)
    assert run(*common, "--class", "dog", "--class", "cat", "--out", tmp_path / "twice") == 0
    assert run(*common, "--class", "DOG,0", "--out", tmp_path / "comma") == 0
    assert run(*common, "--class", "dog", "--out", tmp_path / "dog") == 0
    assert run(*common, "--class", "cat", "--out", tmp_path / "cat") == 0
    manifest = json.loads((tmp_path / "twice" / "manifest.json").read_text())
    assert manifest["classes"] == ["dog", "cat", "dog", "cat", "dog"]
    assert digests(tmp_path / "twice") == digests(tmp_path / "comma")
    for k in range(5):
        name = f"{k:06d}.png"
        expected = pixels(tmp_path / ("dog", "cat")[k % 2] / name)
        assert np.array_equal(pixels(tmp_path / "twice" / name), expected)
        assert not np.array_equal(expected, pixels(tmp_path / ("cat", "dog")[k % 2] / name))
    assert run(*common, "--class", "dog,cat", "--out", tmp_path / "grid.png") == 0
    assert np.array_equal(pixels(tmp_path / "grid.png")[:16, 16:32], pixels(tmp_path / "cat" / "000001.png"))
    with Image.open(tmp_path / "grid.png") as image:
        made = json.loads(image.info["ggm-image"])
    assert made["settings"]["classes"] == ["dog", "cat"]
    assert (made["settings"]["seed"], made["settings"]["count"]) == (3, 5)


def test_a_smaller_number_is_refused_before_the_model_is_loaded(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "files"
    assert run("sample", "--model", model, "-n", 3, "--preset", "fast", "--out", out) == 0
    capsys.readouterr()
    before = digests(out)
    monkeypatch.setattr("ggm_image.cli.sample.load", lambda *_, **__: pytest.fail("the model was loaded"))
    error = refused(capsys, run("sample", "--model", model, "-n", 2, "--preset", "fast", "--out", out))
    assert "folder holds other images" in error
    assert "count is 3, now 2" in error
    (out / "manifest.json").rename(out / "manifest.partial")  # as in a run that was cut
    assert "count is 3, now 2" in refused(capsys, run("sample", "--model", model, "-n", 2, "--out", out))
    (out / "manifest.partial").rename(out / "manifest.json")
    assert digests(out) == before


def test_outputs_of_others_stay(
    model: Path, image_file: Path, mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A photo, a token cache, samples: refused in one line, replaced with --overwrite; our own are replaced at once."""
    fast = ("--model", model, "--preset", "fast")
    sample, inpaint = ("sample", *fast, "-n", 3), ("inpaint", image_file, mask, *fast, "-n", 3)
    out, photo = tmp_path / "out", tmp_path / "photo.png"
    out.mkdir()
    photo.write_bytes(image_file.read_bytes())
    (out / "manifest.json").write_text(json.dumps({"shards": [], "tokenizer_sha256": ""}))
    (out / "tokens-00000.safetensors").write_bytes(b"tokens")
    before = digests(out), photo.read_bytes()
    for command in (sample, inpaint, ("signal", image_file, "--model", model)):
        for target in (photo, out) if command[0] != "signal" else (photo,):
            told = refused(capsys, run(*command, "--out", target))
            assert "exists and was not written by this command" in told
            assert "choose another --out or add --overwrite" in told
    assert (digests(out), photo.read_bytes()) == before
    gif = tmp_path / "a.gif"
    Image.new("L", (4, 4)).save(gif)
    told = refused(capsys, run(*sample, "--out", tmp_path / "new.png", "--trajectory", gif))
    assert "choose another --trajectory or add --overwrite" in told
    assert not (tmp_path / "new.png").exists()
    for _ in range(2):
        assert run(*sample, "--out", tmp_path / "new.png", "--trajectory", tmp_path / "b.gif") == 0
    capsys.readouterr()
    assert "written by ggm-image sample" in refused(capsys, run(*inpaint, "--out", tmp_path / "new.png"))
    for command in (sample, inpaint):
        assert run(*command, "--out", photo, "--overwrite") == 0
        assert run(*command, "--out", photo) == 0
    assert run(*sample, "--out", tmp_path / "samples") == 0
    capsys.readouterr()
    assert "ggm-image sample" in refused(capsys, run(*inpaint, "--out", tmp_path / "samples"))
    assert run(*inpaint, "--out", out, "--overwrite") == 0
    assert (out / "tokens-00000.safetensors").read_bytes() == b"tokens"
    capsys.readouterr()
    assert "ggm-image inpaint" in refused(capsys, run(*sample, "--out", out))


@pytest.mark.parametrize("order", ["schedule", "signal"])
def test_trajectory(model: Path, tmp_path: Path, order: str) -> None:
    arguments = ("--model", model, "-n", 4, "--order", order, "--sweeps", 2, "--block", 4)
    assert run("sample", *arguments, "--out", tmp_path / "a.png", "--trajectory", tmp_path / "a.gif") == 0
    assert run("sample", *arguments, "--out", tmp_path / "b.png") == 0
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.size == (32, 32)
        assert gif.n_frames == 9  # the start and eight calls


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--class", "cta"), ("no such class", "did you mean cat")),
        (("--class", "17"), ("no such class",)),
        (("--preset", "quick"), ("no such preset", "fast, best, exact")),
        (("--order", "random"), ("random",)),
        (("-n", "0"), ("-n",)),
        (("--temperature", "0"), ("--temperature",)),
        (("--top-p", "1.5"), ("--top-p",)),
        (("--out", "image_file.bmp"), (".png, .jpg, .webp, .tif", "or a folder", "image_file.bmp")),
        (("--quality", "90"), ("--quality belongs to JPEG and WebP",)),
        (("--out", "a.jpg", "--quality", "101"), ("'101' is neither lossless nor",)),
        (("--format", "webp"), ("--format belongs to a folder", "name the file samples.webp")),
        (("--trajectory", "a.mp4"), (".gif",)),
        (("--sweps", "2"), ("--sweeps",)),
    ],
)
def test_sample_refuses(
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    parts: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    told = refused(capsys, run("sample", "--model", model, *arguments))
    for part in parts:
        assert part in told
    assert list(tmp_path.iterdir()) == []


def test_models_and_tokenizers_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such model" in refused(capsys, run("sample", "--model", tmp_path / "none"))
    assert "config.yaml" in refused(capsys, run("sample", "--model", tmp_path))
