"""``--out``, ``--format`` and ``--quality``: a photograph goes in, and comes out in the same format or another."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from ggm_image.io.marks import read_mark
from tests.cli.commands import run

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
EXACT = "they are exact only in PNG, TIFF and lossless WebP (--quality lossless)"
OUTPUTS = pytest.mark.parametrize(
    ("name", "options", "lossless"),
    [
        ("out.png", (), True),
        ("out.TIFF", (), True),
        ("out.tif", ("--quality", "lossless"), True),
        ("out.webp", ("--quality", "lossless"), True),
        ("out.webp", ("--quality", "80"), False),
        ("out.jpg", (), False),
        ("out.jpeg", ("--quality", "80"), False),
    ],
)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Stored lying down, to be turned by a quarter: 20 x 16 pixels become 16 x 20."""
    rows, columns = np.mgrid[0:16, 0:20]
    pixels = np.stack([rows * 12, columns * 10, rows * 5 + columns * 5], -1).astype(np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Orientation] = "Acme", 6
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.LensModel: "X 35", ExifTags.Base.MakerNote: b"preview"}
    path = tmp_path / "photo.jpg"
    Image.fromarray(pixels).save(path, quality=95, exif=exif.tobytes(), dpi=(300, 150), icc_profile=SRGB)
    return path


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    hole = np.zeros((20, 16), dtype=np.uint8)
    hole[4:9, 3:8] = 255
    Image.fromarray(hole).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


@OUTPUTS
def test_an_inpainted_photograph(
    name: str,
    options: tuple[str, ...],
    lossless: bool,
    model: Path,
    photo: Path,
    mask: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Known pixels, metadata, what is said, and the mark, by which the same command may run again."""
    out = tmp_path / name
    command = ("inpaint", photo, mask, "--model", model, "--preset", "fast", "--out", out, *options)
    assert run(*command) == 0
    told = capsys.readouterr().err
    assert f"results do not keep the EXIF maker note of {photo}" in told
    assert (EXACT in told) is not lossless
    with Image.open(photo) as image, Image.open(out) as result:
        upright = np.asarray(image.transpose(Image.Transpose.ROTATE_270)).astype(int)
        difference = abs(np.asarray(result).astype(int) - upright)[np.asarray(Image.open(mask)) == 0]
        assert difference.max() == 0 if lossless else 0 < difference.mean() < 12
        exif = result.getexif()
        assert (result.size, exif[ExifTags.Base.Make], exif[ExifTags.Base.Orientation]) == ((16, 20), "Acme", 1)
        assert dict(exif.get_ifd(ExifTags.IFD.Exif)) == {ExifTags.Base.LensModel: "X 35"}
        assert result.info["icc_profile"] == SRGB
        assert (exif[ExifTags.Base.XResolution], exif[ExifTags.Base.YResolution]) == (150, 300)
    mark = read_mark(out)
    assert mark is not None
    assert mark["intact"]
    assert mark["settings"]["hole_pixels"] == 25
    before = out.read_bytes()
    assert run(*command) == 0
    assert out.read_bytes() == before
    with Image.open(out) as edited:
        edited.load()
    edited.save(out)
    changed = out.read_bytes()
    assert run(*command) == 2
    assert "exists and was not written by this command" in capsys.readouterr().err
    assert out.read_bytes() == changed
    assert run(*command, "--overwrite") == 0
    assert out.read_bytes() == before


def test_several_samples_and_folders(model: Path, photo: Path, mask: Path, tmp_path: Path) -> None:
    command = ("inpaint", photo, mask, "--model", model, "--preset", "fast", "-n", 2)
    assert run(*command, "--out", tmp_path / "a.webp") == 0
    assert all((tmp_path / name).is_file() for name in ("a.webp", "a-0.webp", "a-1.webp"))
    assert run(*command, "--out", tmp_path / "a") == 0
    assert run(*command, "--out", tmp_path / "a", "--format", "jpg", "--quality", 80) == 0
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["000000.jpg", "000001.jpg", "manifest.json"]
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert (manifest["format"], manifest["quality"]) == ("JPEG", 80)


def test_transparency_that_a_jpeg_does_not_hold(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rgba = np.full((16, 16, 4), 90, dtype=np.uint8)
    rgba[..., 3] = 255
    rgba[:6, :6, 3], rgba[10:, 10:, 3] = 0, 200
    Image.fromarray(rgba).save(tmp_path / "sticker.png")
    command = ("inpaint", tmp_path / "sticker.png", "--model", model, "--preset", "fast", "--out")
    assert run(*command, tmp_path / "a.jpg") == 0
    assert "JPEG files do not hold transparency (composited on white)" in capsys.readouterr().err
    assert run(*command, tmp_path / "a.webp", "--quality", "lossless") == 0
    assert capsys.readouterr().err.count("\n") == 1
    known = np.ones((16, 16), dtype=bool)
    known[:6, :6] = False
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.webp"))[known], rgba[known])


@OUTPUTS
def test_a_grid_of_samples(name: str, options: tuple[str, ...], lossless: bool, model: Path, tmp_path: Path) -> None:
    common = ("sample", "--model", model, "--preset", "fast", "-n", 4)
    assert run(*common, "--out", tmp_path / "grid.png") == 0
    assert run(*common, "--out", tmp_path / name, *options) == 0
    with Image.open(tmp_path / "grid.png") as grid, Image.open(tmp_path / name) as result:
        assert result.size == grid.size
        assert (result.tobytes() == grid.tobytes()) is lossless


@pytest.mark.parametrize("form", ["jpg", "webp", "tiff"])
def test_a_folder_of_samples(form: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is resumed, a damaged image is replaced, and no other format or quality enters it."""
    out = tmp_path / "out"
    common = ("sample", "--model", model, "--preset", "fast", "--out", out)
    quality = () if form == "tiff" else ("--quality", 90)
    suffix = ".tif" if form == "tiff" else f".{form}"
    assert run(*common, "-n", 2, "--format", form, *quality) == 0
    first = (out / f"000000{suffix}").read_bytes()
    (out / f"000001{suffix}").write_bytes(first[:-9])
    assert run(*common, "-n", 3, "--format", form, *quality) == 0
    assert sorted(path.name for path in out.iterdir()) == [*(f"00000{k}{suffix}" for k in range(3)), "manifest.json"]
    assert (out / f"000000{suffix}").read_bytes() == first
    assert all((read_mark(path) or {})["intact"] for path in out.glob(f"*{suffix}"))
    capsys.readouterr()
    assert run(*common, "-n", 3) == 2
    told = capsys.readouterr().err
    assert {"jpg": "format is JPEG", "webp": "format is WebP", "tiff": "format is TIFF"}[form] in told
    assert "now PNG" in told
    if quality:
        assert run(*common, "-n", 3, "--format", form) == 2
        assert "quality is 90, now 95" in capsys.readouterr().err
    (out / "000007.jpg").write_bytes(b"another's")
    assert run(*common, "-n", 2, "--overwrite") == 0
    assert sorted(path.name for path in out.iterdir()) == ["000000.png", "000001.png", "000007.jpg", "manifest.json"]


def test_a_grid_too_wide_for_the_format(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is refused before the images are sampled."""
    n = (16_383 // 16 + 1) ** 2
    assert run("sample", "--model", model, "--preset", "fast", "-n", n, "--out", tmp_path / "a.webp") == 2
    assert "a WebP file holds at most 16383 pixels a side (the result has 16384 x 16384)" in capsys.readouterr().err
    wide = Image.new("L", (16_400, 16))
    wide.save(tmp_path / "wide.png")
    Image.new("L", (16_400, 16)).save(tmp_path / "mask.png")
    command = ("inpaint", tmp_path / "wide.png", tmp_path / "mask.png", "--model", model)
    assert run(*command, "--out", tmp_path / "b.webp") == 2
    assert "16400 x 16" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.webp"))


def test_a_signal_map_as_jpeg(model: Path, photo: Path, tmp_path: Path) -> None:
    assert run("signal", photo, "--model", model, "--out", tmp_path / "map.jpg") == 0
    assert (read_mark(tmp_path / "map.jpg") or {})["command"] == "signal"
