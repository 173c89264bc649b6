"""What stays of an image's metadata once it is upright and part of it is painted."""

import io
import struct
from typing import Any

import pytest
from PIL import ExifTags, Image, ImageCms, PngImagePlugin, TiffImagePlugin

from ggm_image.image.io import open_pil, to_storable_mode
from ggm_image.image.metadata import DROPPED, with_metadata
from ggm_image.io.image_formats import JPEG, PNG, TIFF, WEBP, Encoding, marked_image

TAG, IFD = ExifTags.Base, ExifTags.IFD
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
FORMATS = pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])


def camera_exif(orientation: int = 6) -> Image.Exif:
    exif = Image.Exif()
    exif[TAG.Make], exif[TAG.Orientation], exif[TAG.DateTime] = "Acme", orientation, "2020:01:02 03:04:05"
    exif[IFD.Exif] = {TAG.LensModel: "X 35", TAG.FNumber: 2.8, 0x9214: (1, 2), TAG.CompressedBitsPerPixel: 3.0}
    exif[IFD.GPSInfo] = {1: "N", 2: (1.0, 2.0, 3.0)}
    return exif


def with_thumbnail(exif: bytes, thumbnail: bytes) -> bytes:
    """EXIF with a second directory, of which Pillow writes none."""
    head, body = exif[:6], bytearray(exif[6:])
    (first,) = struct.unpack(">I", body[4:8])
    (count,) = struct.unpack(">H", body[first : first + 2])
    place = len(body)
    body[first + 2 + 12 * count : first + 6 + 12 * count] = struct.pack(">I", place)
    data = place + 2 + 24 + 4
    body += struct.pack(">HHHIIHHIII", 2, 0x0201, 4, 1, data, 0x0202, 4, 1, len(thumbnail), 0) + thumbnail
    return head + bytes(body)


def saved(form: str, mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (8, 4)).save(file, form, **options)
    return file.getvalue()


@FORMATS
def test_what_is_kept(form: str) -> None:
    """Upright pixels, orientation 1, the resolution turned with them, and nothing of how the file was packed."""
    data = saved(form, exif=camera_exif().tobytes(), dpi=(300, 150), icc_profile=SRGB)
    image = open_pil(data)
    assert image.size == (4, 8)
    assert image.info["icc_profile"] == SRGB
    assert image.info.get("dpi", (150, 300)) == pytest.approx((150, 300), abs=0.1)  # a WebP has none
    assert image.info[DROPPED] == ()
    exif = Image.Exif()
    exif.load(image.info["exif"])
    assert (exif[TAG.Make], exif[TAG.Orientation], exif[TAG.DateTime]) == ("Acme", 1, "2020:01:02 03:04:05")
    assert set(exif) <= {
        TAG.Make, TAG.Orientation, TAG.DateTime, IFD.Exif, IFD.GPSInfo, TAG.XResolution, TAG.YResolution,
        TAG.ResolutionUnit,
    }  # fmt: skip
    assert dict(exif.get_ifd(IFD.Exif)) == {TAG.LensModel: "X 35", TAG.FNumber: pytest.approx(2.8)}
    assert dict(exif.get_ifd(IFD.GPSInfo)) == {1: "N", 2: (1.0, 2.0, 3.0)}
    again = open_pil(image)  # seen to fail with what Pillow had parsed before the image was turned
    assert (again.size, again.info) == (image.size, image.info)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_what_shows_the_old_pixels_is_dropped_and_named(form: str) -> None:
    exif = camera_exif(1)
    exif[IFD.Exif] |= {TAG.MakerNote: b"AcmeNote preview"}
    options: dict[str, Any] = {"xmp": b"<x:xmpmeta/>"}
    if form == "PNG":
        texts = PngImagePlugin.PngInfo()
        texts.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta/>")
        options = {"pnginfo": texts}
    data = saved(form, exif=with_thumbnail(exif.tobytes(), saved("JPEG")), **options)
    with Image.open(io.BytesIO(data)) as before:
        assert before.getexif().get_ifd(IFD.IFD1)
    image = open_pil(data)
    assert image.info[DROPPED] == (
        "the EXIF thumbnail, which shows the old pixels", "the EXIF maker note", "XMP",
    )  # fmt: skip
    assert b"preview" not in image.info["exif"]
    assert saved("JPEG") not in image.info["exif"]


def test_comments_are_named_and_our_mark_is_none() -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Author", "me")
    for data in (saved("PNG", pnginfo=texts), saved("JPEG", comment=b"by me")):
        assert open_pil(data).info[DROPPED] == ("comments",)
    for encoding in (Encoding(PNG), Encoding(JPEG, 95), Encoding(WEBP), Encoding(TIFF)):
        ours = marked_image(Image.new("RGB", (8, 4)), "inpaint", {}, encoding)
        assert open_pil(ours).info[DROPPED] == ()


def test_a_resolution_in_exif_alone_is_turned_too() -> None:
    exif = camera_exif()
    exif[TAG.XResolution], exif[TAG.YResolution], exif[TAG.ResolutionUnit] = 300, 150, 2
    kept = Image.Exif()
    kept.load(open_pil(saved("WEBP", exif=exif.tobytes())).info["exif"])
    assert (kept[TAG.XResolution], kept[TAG.YResolution], kept[TAG.ResolutionUnit]) == (150, 300, 2)


def test_a_profile_of_inks_is_dropped_with_them() -> None:
    image = to_storable_mode(open_pil(saved("JPEG", "CMYK", icc_profile=SRGB, comment=b"proof")))
    assert image.mode == "RGB"
    assert "icc_profile" not in image.info
    assert image.info[DROPPED] == ("comments", "the ICC profile, which describes inks")


@pytest.mark.parametrize("dpi", [None, (0, 0), (float("nan"), 72), ("a", "b"), 72, (1e9, 72), (72,)])
def test_a_resolution_that_is_none(dpi: object) -> None:
    image = Image.new("RGB", (3, 2))
    image.info["dpi"] = dpi
    assert "dpi" not in open_pil(image).info


@pytest.mark.parametrize(
    "content", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\xff\xff", b"junk", b"Exif\0\0II*\0\x08\0\0\0\xff\0"]
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_no_error(content: bytes) -> None:
    image = Image.new("RGB", (3, 2))
    image.info["exif"] = content
    assert open_pil(image).size == (3, 2)


def test_a_damaged_entry_takes_no_other_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.new("RGB", (3, 2))
    image.info["exif"] = camera_exif(1).tobytes()
    write = TiffImagePlugin.ImageFileDirectory_v2.tobytes

    def failing(self: Any, offset: int = 0) -> bytes:
        if TAG.Make in self:
            raise struct.error("no such number")
        return write(self, offset)

    monkeypatch.setattr(TiffImagePlugin.ImageFileDirectory_v2, "tobytes", failing)
    info = open_pil(image).info
    assert info[DROPPED] == ("damaged EXIF entries",)
    exif = Image.Exif()
    exif.load(info["exif"])
    assert TAG.Make not in exif
    assert exif.get_ifd(IFD.Exif)[TAG.LensModel] == "X 35"


def test_the_source_is_not_changed_and_a_result_gets_what_is_kept() -> None:
    source = Image.new("RGB", (3, 2))
    source.info = {"exif": camera_exif().tobytes(), "icc_profile": SRGB, "other": 1}
    before = dict(source.info)
    result = with_metadata(Image.new("RGB", (2, 3)), open_pil(source))
    assert source.info == before
    assert set(result.info) == {"exif", "icc_profile"}
