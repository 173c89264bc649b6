"""``sample``, ``inpaint``, ``models``, ``tokenizers`` as somebody types them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ggm_image.cli.main import main
from ggm_image.io.files import sha256_file
from tests.faults.harness import digests
from tests.models import tiny_model_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model"))


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def refused(capsys: pytest.CaptureFixture[str], code: int) -> str:
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


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


def test_one_picture(model: Path, tmp_path: Path) -> None:
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


def test_inpaint_classes_take_turns(model: Path, picture: Path, mask: Path, tmp_path: Path) -> None:
    common = ("inpaint", picture, mask, "--model", model, "--preset", "fast", "-n", 3)
    assert run(*common, "--class", "dog,cat", "--out", tmp_path / "both") == 0
    assert json.loads((tmp_path / "both" / "manifest.json").read_text())["classes"] == ["dog", "cat"]
    for name in ("dog", "cat"):
        assert run(*common, "--class", name, "--out", tmp_path / name) == 0
        assert json.loads((tmp_path / name / "manifest.json").read_text())["classes"] == name
    for k in range(3):
        expected = tmp_path / ("dog", "cat")[k % 2] / f"{k:06d}.png"
        assert np.array_equal(pixels(tmp_path / "both" / f"{k:06d}.png"), pixels(expected))


def test_outputs_of_others_stay(
    model: Path, picture: Path, mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A photo, a token cache, samples: refused in one line, replaced with --overwrite; our own are replaced at once."""
    fast = ("--model", model, "--preset", "fast")
    sample, inpaint = ("sample", *fast, "-n", 3), ("inpaint", picture, mask, *fast, "-n", 3)
    out, photo = tmp_path / "out", tmp_path / "photo.png"
    out.mkdir()
    photo.write_bytes(picture.read_bytes())
    (out / "manifest.json").write_text(json.dumps({"shards": [], "tokenizer_sha256": ""}))
    (out / "tokens-00000.safetensors").write_bytes(b"tokens")
    before = digests(out), photo.read_bytes()
    for command in (sample, inpaint, ("signal", picture, "--model", model)):
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


def test_fewer_samples_than_before(
    model: Path, picture: Path, mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder holds what its manifest says, and it is said what was removed."""
    common = ("inpaint", picture, mask, "--model", model, "--preset", "fast", "--out", tmp_path / "out")
    assert run(*common, "-n", 4) == 0
    capsys.readouterr()
    assert run(*common, "-n", 2) == 0
    assert "removed 2 images" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["000000.png", "000001.png", "manifest.json"]
    (tmp_path / "out" / "000001.png").write_bytes(picture.read_bytes())
    assert "000001.png exists" in refused(capsys, run(*common, "-n", 2))
    assert (tmp_path / "out" / "000001.png").read_bytes() == picture.read_bytes()


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
        (("--out", "picture.bmp"), (".png, .jpg, .webp, .tif", "or a folder", "picture.bmp")),
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


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "in.png")
    return tmp_path / "in.png"


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    hole = np.zeros((16, 16), dtype=np.uint8)
    hole[5:11, 2:9] = 255
    Image.fromarray(hole).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def test_inpaint_keeps_known_pixels(model: Path, picture: Path, mask: Path, tmp_path: Path) -> None:
    known = pixels(mask) == 0
    assert run("inpaint", picture, mask, "--model", model, "--class", "cat", "--out", tmp_path / "o.png") == 0
    assert np.array_equal(pixels(tmp_path / "o.png")[known], pixels(picture)[known])
    assert run("inpaint", picture, mask, "--model", model, "-n", 2, "--feather", 2, "--out", tmp_path / "two.png") == 0
    samples = [pixels(tmp_path / f"two-{k}.png") for k in range(2)]
    assert all(np.array_equal(sample[known], pixels(picture)[known]) for sample in samples)
    assert run("inpaint", picture, mask, "--model", model, "-n", 2, "--out", tmp_path / "dir") == 0
    assert sorted(p.name for p in (tmp_path / "dir").iterdir()) == ["000000.png", "000001.png", "manifest.json"]
    manifest = json.loads((tmp_path / "dir" / "manifest.json").read_text())
    assert manifest["image_sha256"] == sha256_file(picture)
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
    model: Path, picture: Path, mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
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
    assert "text.png" in refused(capsys, run("inpaint", picture, text, *out))
    assert "none.png" in refused(capsys, run("inpaint", tmp_path / "none.png", mask, *out))
    told = refused(capsys, run("inpaint", picture, small, *out))
    assert "16 x 16" in told
    assert "8 x 8" in told
    assert "left=32,top=16" in refused(capsys, run("inpaint", picture, mask, "--extend", "up=3", *out))
    assert "context" in refused(capsys, run("inpaint", picture, mask, "--context", 8, *out))
    assert "mask is needed" in refused(capsys, run("inpaint", picture, *out))
    assert not (tmp_path / "out.png").exists()


def test_inputs_are_never_written_over(
    model: Path, picture: Path, mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = picture.read_bytes(), mask.read_bytes()
    for out in (picture, mask, tmp_path / "." / "in.png"):
        assert "input" in refused(capsys, run("inpaint", picture, mask, "--model", model, "-n", 2, "--out", out))
    assert "input" in refused(capsys, run("signal", picture, "--model", model, "--out", picture))
    first, numbered = tmp_path / "x-0.png", tmp_path / "000001.png"
    first.write_bytes(before[0])
    numbered.write_bytes(before[1])
    assert "x-0.png" in refused(capsys, run("inpaint", first, mask, "-n", 2, "--out", tmp_path / "x.png"))
    assert "000001.png" in refused(capsys, run("inpaint", picture, numbered, "-n", 2, "--out", tmp_path))
    assert (picture.read_bytes(), mask.read_bytes()) == before


def test_inpaint_says_what_was_done(
    model: Path, picture: Path, mask: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    black, large, out = tmp_path / "black.png", tmp_path / "large.png", tmp_path / "o.png"
    Image.new("L", (16, 16), 0).save(black)
    Image.new("L", (60, 40), 255).save(large)

    def told(*arguments: object) -> str:
        assert run("inpaint", *arguments, "--model", model, "--preset", "fast", "--out", out) == 0
        return capsys.readouterr().err

    assert "nothing to paint" in told(picture, black)
    assert np.array_equal(pixels(out), pixels(picture))
    assert "painted 16.4% of 16 x 16 pixels" in told(picture, mask)
    assert "100.0% of 16 x 16" in told(picture, large, "--fit")
    assert "of 24 x 20 pixels in 3 overlapping windows of 16 x 16" in told(picture, "--extend", "left=8,bottom=4")
    assert np.array_equal(pixels(out)[:16, 8:], pixels(picture))
    assert run("inpaint", picture, mask, "--model", model, "-n", 2, "--out", out, "--json") == 0
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


def test_signal_map(model: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = picture.read_bytes()
    assert run("signal", picture, "--model", model, "--class", "cat", "--out", tmp_path / "map.png") == 0
    assert "least signal at row" in capsys.readouterr().out
    assert pixels(tmp_path / "map.png").shape == (256, 520, 3)  # enlarged 16 times, twice, 8 pixels between
    assert run("signal", picture, "--model", model, "--class", "cat", "--out", tmp_path / "again.png", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert np.array(told["signal"]).shape == (4, 4)
    assert 0 <= np.min(told["signal"]) <= np.max(told["signal"]) <= 1
    assert (tmp_path / "map.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    assert picture.read_bytes() == before


def test_signal_refuses(model: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd, text = tmp_path / "odd.png", tmp_path / "text.png"
    Image.new("RGB", (3, 16)).save(odd)
    text.write_text("no image")
    out = ("--model", model, "--out", tmp_path / "map.png")
    assert "at least 4 pixels" in refused(capsys, run("signal", odd, *out))
    assert "text.png" in refused(capsys, run("signal", text, *out))
    assert "did you mean cat" in refused(capsys, run("signal", picture, "--class", "cta", *out))
    assert "--level" in refused(capsys, run("signal", picture, "--level", 1, *out))
    assert "name it X.png" in refused(capsys, run("signal", picture, "--model", model, "--out", tmp_path / "map.bmp"))
    assert "name it X.png" in refused(capsys, run("signal", picture, "--model", model, "--out", tmp_path / "map"))
    assert not (tmp_path / "map.png").exists()


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("models", "--json") == 0
    models = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"cifar10", "robots64"} <= models.keys()
    assert all(row["megabytes"] > 1 and set(row["figures"]) <= set(row["presets"]) for row in models.values())
    assert run("tokenizers", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"name", "codes", "downscale", "reported"} <= rows[0].keys()
    assert run("tokenizers") == 0
    assert "cifar10-f4-4096" in capsys.readouterr().out
