"""``inpaint`` as it is typed: known pixels stay, samples go to files or a folder, and inputs are never overwritten."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ggm_image.io.files import sha256_file
from tests.cli.commands import pixels, refused, run


def test_inpaint_classes_take_turns(model: Path, image_file: Path, mask: Path, tmp_path: Path) -> None:
    common = ("inpaint", image_file, mask, "--model", model, "--preset", "fast", "-n", 3)
    assert run(*common, "--class", "dog,cat", "--out", tmp_path / "both") == 0
    assert json.loads((tmp_path / "both" / "manifest.json").read_text())["classes"] == ["dog", "cat"]
    for name in ("dog", "cat"):
        assert run(*common, "--class", name, "--out", tmp_path / name) == 0
        assert json.loads((tmp_path / name / "manifest.json").read_text())["classes"] == name
    for k in range(3):
        expected = tmp_path / ("dog", "cat")[k % 2] / f"{k:06d}.png"
        assert np.array_equal(pixels(tmp_path / "both" / f"{k:06d}.png"), pixels(expected))


def test_fewer_samples_than_before(
    model: Path, image_file: Path, mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder holds what its manifest says, and it is said what was removed."""
    common = ("inpaint", image_file, mask, "--model", model, "--preset", "fast", "--out", tmp_path / "out")
    assert run(*common, "-n", 4) == 0
    capsys.readouterr()
    assert run(*common, "-n", 2) == 0
    assert "removed 2 images" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["000000.png", "000001.png", "manifest.json"]
    (tmp_path / "out" / "000001.png").write_bytes(image_file.read_bytes())
    assert "000001.png exists" in refused(capsys, run(*common, "-n", 2))
    assert (tmp_path / "out" / "000001.png").read_bytes() == image_file.read_bytes()


def test_inpaint_keeps_known_pixels(model: Path, image_file: Path, mask: Path, tmp_path: Path) -> None:
    known = pixels(mask) == 0
    assert run("inpaint", image_file, mask, "--model", model, "--class", "cat", "--out", tmp_path / "o.png") == 0
    assert np.array_equal(pixels(tmp_path / "o.png")[known], pixels(image_file)[known])
    assert (
        run("inpaint", image_file, mask, "--model", model, "-n", 2, "--feather", 2, "--out", tmp_path / "two.png") == 0
    )
    samples = [pixels(tmp_path / f"two-{k}.png") for k in range(2)]
    assert all(np.array_equal(sample[known], pixels(image_file)[known]) for sample in samples)
    assert run("inpaint", image_file, mask, "--model", model, "-n", 2, "--out", tmp_path / "dir") == 0
    assert sorted(p.name for p in (tmp_path / "dir").iterdir()) == ["000000.png", "000001.png", "manifest.json"]
    manifest = json.loads((tmp_path / "dir" / "manifest.json").read_text())
    assert manifest["image_sha256"] == sha256_file(image_file)
    assert manifest["mask_sha256"] == sha256_file(mask)
    assert manifest["hole_pixels"] == 42
    sheet = pixels(tmp_path / "two.png")  # input and two answers, 8 times enlarged, two a row
    assert sheet.shape == (2 * 128 + 4, 2 * 128 + 4, 3)
    assert (sheet[:128, :128][np.kron(~known, np.ones((8, 8), bool))] == 128).all()
    assert np.array_equal(sheet[:128:8, 132::8], samples[0])


def test_transparent_parts_are_the_mask(model: Path, tmp_path: Path) -> None:
    rgba = np.random.default_rng(1).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    rgba[..., 3] = 255
    rgba[4:8, 4:8, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "in.png")
    assert run("inpaint", tmp_path / "in.png", "--model", model, "--out", tmp_path / "out.png") == 0
    out = pixels(tmp_path / "out.png")
    known = rgba[..., 3] == 255
    assert np.array_equal(out[known], rgba[known])
    assert (out[..., 3] == 255).all()


def test_inpaint_refuses(
    model: Path, image_file: Path, mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.png"
    text.write_text("no image")
    small = tmp_path / "small.png"
    Image.new("L", (8, 8), 255).save(small)
    out = ("--model", model, "--out", tmp_path / "out.png")
    odd, white = tmp_path / "odd.png", tmp_path / "white.png"
    Image.new("RGB", (1, 1)).save(odd)
    Image.new("L", (1, 1), 255).save(white)
    assert "at least 4 pixels" in refused(capsys, run("inpaint", odd, white, *out))
    assert "text.png" in refused(capsys, run("inpaint", text, mask, *out))
    assert "text.png" in refused(capsys, run("inpaint", image_file, text, *out))
    assert "none.png" in refused(capsys, run("inpaint", tmp_path / "none.png", mask, *out))
    told = refused(capsys, run("inpaint", image_file, small, *out))
    assert "16 x 16" in told
    assert "8 x 8" in told
    assert "left=32,top=16" in refused(capsys, run("inpaint", image_file, mask, "--extend", "up=3", *out))
    assert "context" in refused(capsys, run("inpaint", image_file, mask, "--context", 8, *out))
    assert "mask is needed" in refused(capsys, run("inpaint", image_file, *out))
    assert not (tmp_path / "out.png").exists()


def test_inputs_are_never_written_over(
    model: Path, image_file: Path, mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = image_file.read_bytes(), mask.read_bytes()
    for out in (image_file, mask, tmp_path / "." / "in.png"):
        assert "input" in refused(capsys, run("inpaint", image_file, mask, "--model", model, "-n", 2, "--out", out))
    assert "input" in refused(capsys, run("signal", image_file, "--model", model, "--out", image_file))
    first, numbered = tmp_path / "x-0.png", tmp_path / "000001.png"
    first.write_bytes(before[0])
    numbered.write_bytes(before[1])
    assert "x-0.png" in refused(capsys, run("inpaint", first, mask, "-n", 2, "--out", tmp_path / "x.png"))
    assert "000001.png" in refused(capsys, run("inpaint", image_file, numbered, "-n", 2, "--out", tmp_path))
    assert (image_file.read_bytes(), mask.read_bytes()) == before


def test_inpaint_says_what_was_done(
    model: Path, image_file: Path, mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    black, large, out = tmp_path / "black.png", tmp_path / "large.png", tmp_path / "o.png"
    Image.new("L", (16, 16), 0).save(black)
    Image.new("L", (60, 40), 255).save(large)

    def told(*arguments: object) -> str:
        assert run("inpaint", *arguments, "--model", model, "--preset", "fast", "--out", out) == 0
        return capsys.readouterr().err

    assert "nothing to paint" in told(image_file, black)
    assert np.array_equal(pixels(out), pixels(image_file))
    assert "painted 16.4% of 16 x 16 pixels" in told(image_file, mask)
    assert "100.0% of 16 x 16" in told(image_file, large, "--fit")
    assert "of 24 x 20 pixels in 3 overlapping windows of 16 x 16" in told(image_file, "--extend", "left=8,bottom=4")
    assert np.array_equal(pixels(out)[:16, 8:], pixels(image_file))
    assert run("inpaint", image_file, mask, "--model", model, "-n", 2, "--out", out, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["windows"] == [{"top": 0, "left": 0, "height": 16, "width": 16}]
    assert report["hole_pixels"] == 42
    assert all(Path(name).exists() for name in [*report["out"], report["sheet"]])


def test_inpaint_from_coarse_to_fine(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image, mask, out = tmp_path / "in.png", tmp_path / "mask.png", tmp_path / "out.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(image)
    hole = np.zeros((48, 48), dtype=bool)
    hole[12:36, 12:36] = True
    Image.fromarray(hole.astype(np.uint8) * 255).save(mask)
    found = []
    for options, scales in (
        ([], 3),
        (["--scales", "auto", "--tau", "1"], 3),
        (["--tau", "50"], 3),
        (["--scales", "1"], 1),
    ):
        assert run("inpaint", image, mask, "--model", model, "--preset", "fast", "--out", out, "--json", *options) == 0
        told = capsys.readouterr()
        report = json.loads(told.out)
        found.append(pixels(out))
        assert np.array_equal(found[-1][~hole], pixels(image)[~hole])
        assert len(report["scales"]) == scales
        assert report["scales"][-1] == {"factor": 1.0, "windows": len(report["windows"])}
        assert "up to 24 pixels wide" in told.err
    assert np.array_equal(found[0], found[1])
    assert len({x.tobytes() for x in found}) == 3
    for options in (["--scales", "0"], ["--scales", "many"], ["--tau", "0"], ["--tau", "nan"]):
        assert options[0][2:] in refused(capsys, run("inpaint", image, mask, "--model", model, "--out", out, *options))
