"""Every format keeps what it can hold of an image, and says what it cannot."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from ggm_image.errors import UserError
from ggm_image.io.image_formats import FORMATS, JPEG, PNG, TIFF, WEBP, Encoding, encode, format_of, losses

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LOSSLESS = [Encoding(PNG), Encoding(TIFF), Encoding(WEBP)]
ALL = [*LOSSLESS, Encoding(JPEG, 95), Encoding(WEBP, 95)]


def name_of(encoding: Encoding) -> str:
    return f"{encoding.format.name} {encoding.quality}"


def noise(mode: str, seed: int = 0, size: tuple[int, int] = (9, 13)) -> Image.Image:
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, size, dtype=np.uint16))
    channels = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,)}[mode]
    return Image.fromarray(rng.integers(0, 256, (*size, *channels), dtype=np.uint8))


def opened(image: Image.Image, encoding: Encoding) -> Image.Image:
    result = Image.open(io.BytesIO(encode(image, encoding)))
    result.load()
    return result


def exif_of(**inner: Any) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Orientation] = "Acme", 1
    exif[ExifTags.IFD.Exif] = {ExifTags.Base[name]: value for name, value in inner.items()}
    exif[ExifTags.IFD.GPSInfo] = {1: "N"}
    return exif.tobytes()


@pytest.mark.parametrize("encoding", LOSSLESS, ids=name_of)
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16"])
def test_lossless_formats_keep_every_pixel(mode: str, encoding: Encoding) -> None:
    """Colours of transparent pixels too; WebP holds 8-bit colour alone. Seen to fail without WebP's ``exact``."""
    image = noise(mode)
    result = opened(image, encoding)
    if encoding.format is WEBP and mode == "I;16":
        assert losses(image, encoding) == ["16 bits a pixel (reduced to 8)"]
        expected = np.rint(np.asarray(image) / 257).astype(np.uint8)
        assert np.array_equal(np.asarray(result)[..., 0], expected)
        return
    assert losses(image, encoding) == []
    if encoding.format is WEBP:
        assert result.tobytes() == image.convert("RGBA" if "A" in mode else "RGB").tobytes()
    else:
        assert (result.mode, result.tobytes()) == (mode, image.tobytes())


@pytest.mark.parametrize("encoding", ALL, ids=name_of)
def test_metadata_in_every_format(encoding: Encoding) -> None:
    image = noise("RGB")
    image.info = {
        "icc_profile": SRGB,
        "dpi": (300.0, 150.0),
        "exif": exif_of(LensModel="X 35", ExifImageWidth=4000, ExifImageHeight=3000, ExposureTime=0.005),
        "comment": b"private",
    }
    assert losses(image, encoding) == []
    result = opened(image, encoding)
    assert result.info["icc_profile"] == SRGB
    assert b"private" not in encode(image, encoding)
    exif = result.getexif()
    inner = exif.get_ifd(ExifTags.IFD.Exif)
    assert (exif[ExifTags.Base.Make], exif[ExifTags.Base.Orientation]) == ("Acme", 1)
    assert exif[ExifTags.Base.Software] == "ggm-image"
    assert inner[ExifTags.Base.LensModel] == "X 35"
    assert inner[ExifTags.Base.ExposureTime] == pytest.approx(0.005)
    assert (inner[ExifTags.Base.ExifImageWidth], inner[ExifTags.Base.ExifImageHeight]) == image.size
    assert exif.get_ifd(ExifTags.IFD.GPSInfo)[1] == "N"
    assert (exif[ExifTags.Base.XResolution], exif[ExifTags.Base.YResolution]) == (300, 150)
    if encoding.format is not WEBP:
        assert result.info["dpi"] == pytest.approx((300, 150), abs=0.1)


def test_a_png_without_metadata_is_pillows() -> None:
    """Byte for byte: images of folders that are begun stay the same."""
    file = io.BytesIO()
    noise("RGB").save(file, format="PNG")
    assert encode(noise("RGB")) == file.getvalue()


def test_jpeg_has_colours_at_full_resolution() -> None:
    """Seen to fail with Pillow's 4:2:0, in which neighbouring colours mix."""
    stripes = np.zeros((16, 16, 3), np.uint8)
    stripes[:, ::2, 0], stripes[:, 1::2, 2] = 200, 200
    result = np.asarray(opened(Image.fromarray(stripes), Encoding.choose(JPEG))).astype(int)
    assert abs(result - stripes).max() < 30
    sizes = [len(encode(noise("RGB", size=(64, 64)), Encoding.choose(JPEG, quality))) for quality in (50, None, 100)]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_jpeg_lies_on_white(mode: str) -> None:
    image = noise(mode)
    image.putalpha(0)
    result = opened(image, Encoding(JPEG, 95))
    assert result.mode == mode.removesuffix("A")
    assert set(result.tobytes()) == {255}
    assert losses(image, Encoding(JPEG, 95)) == ["transparency (composited on white)"]
    image.putalpha(255)
    assert losses(image, Encoding(JPEG, 95)) == []


def test_what_a_file_cannot_hold_is_said_and_left_out() -> None:
    grey = noise("L")
    grey.info["icc_profile"] = SRGB[:16] + b"GRAY" + SRGB[20:]
    assert losses(grey, Encoding(TIFF)) == []
    assert losses(grey, Encoding(WEBP)) == ["the ICC profile (of other colours than the file's)"]
    assert "icc_profile" not in opened(grey, Encoding(WEBP)).info
    large = noise("RGB")
    large.info["exif"] = exif_of(UserComment=b"x" * 70_000)
    assert losses(large, Encoding(PNG)) == []
    assert losses(large, Encoding(JPEG, 95)) == ["EXIF (more than 64 KB)"]
    assert not opened(large, Encoding(JPEG, 95)).getexif()


def test_suffixes_and_qualities() -> None:
    for form in FORMATS:
        for suffix in form.suffixes:
            assert format_of(f"a/b.c{suffix.upper()}") is form
    assert format_of("a.gif") is format_of("png") is format_of(".png") is None
    assert Encoding.choose(JPEG).quality == Encoding.choose(WEBP).quality == 95
    assert Encoding.choose(WEBP, "lossless").quality is Encoding.choose(TIFF, "lossless").quality is None
    assert Encoding.choose(WEBP, 7).described == {"format": "WebP", "quality": 7}
    with pytest.raises(UserError, match="JPEG is never lossless"):
        Encoding.choose(JPEG, "lossless")
    with pytest.raises(UserError, match=r"--quality belongs to JPEG and WebP \(PNG is always lossless\)"):
        Encoding.choose(PNG, 90)


def test_sides_that_a_format_cannot_hold() -> None:
    """Pillow ends in an error of its own a pixel further."""
    for form in (JPEG, WEBP):
        encoding = Encoding.choose(form)
        encoding.check_size(form.most_side, 1)
        assert opened(Image.new("L", (form.most_side, 1)), encoding).size == (form.most_side, 1)
        with pytest.raises(UserError, match=f"at most {form.most_side} pixels a side"):
            encoding.check_size(1, form.most_side + 1)
