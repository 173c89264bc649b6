"""One image in, 8-bit RGB out: every mode, every breakage."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from ggm_image.data.sources.image_files import open_source
from ggm_image.errors import UserError
from ggm_image.image import deep_png
from ggm_image.image import io as images
from ggm_image.image.inputs import open_single_image
from ggm_image.image.io import open_image, open_pil, rgb_pixels, save_png, to_pil
from ggm_image.image.masks import load_mask
from ggm_image.image.preprocess import preprocess, to_model, to_uint8
from ggm_image.image.visualize import image_grid


def packed(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(channels: int = 3) -> np.ndarray:
    values = np.arange(5 * 7 * channels).reshape(5, 7, channels) * 255 // (5 * 7 * channels - 1)
    return values.astype(np.uint8)


def png16(values: np.ndarray) -> bytes:
    """A 16-bit PNG (h, w, c): Pillow writes only one channel of 16 bits."""
    h, w, c = values.shape
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[c]
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", w, h, 16, colour, 0, 0, 0)),
        (b"IDAT", zlib.compress(raw)),
        (b"IEND", b""),
    ]
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM"])
def test_rgb_comes_back_bit_equal(kind: str) -> None:
    values = gradient()
    np.testing.assert_array_equal(open_image(packed(Image.fromarray(values), kind)).permute(1, 2, 0), values)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
def test_grey_has_three_equal_channels(kind: str) -> None:
    pixels = open_image(packed(Image.fromarray(np.full((8, 8), 77, np.uint8)), kind))
    assert pixels.shape == (3, 8, 8)
    assert (pixels == 77).all()


def test_one_bit() -> None:
    values = np.indices((4, 6)).sum(0) % 2 == 1
    pixels = open_image(packed(Image.fromarray(values)))
    np.testing.assert_array_equal(pixels[2], values * 255)


# Seen to fail with convert("RGB") in place of compositing (the colour under them shone through).
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_transparency_lies_on_white(kind: str) -> None:
    values = np.zeros((2, 3, 4), np.uint8)
    values[..., 0], values[..., 3] = 200, np.array([0, 128, 255])
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    pixels = open_image(packed(Image.fromarray(values), kind, **options))
    assert pixels[:, 0, 0].tolist() == [255, 255, 255]
    assert pixels[:, 0, 2].tolist() == [200, 0, 0]
    assert abs(int(pixels[1, 0, 1]) - 127) <= 1


def test_grey_with_alpha_and_palette_with_transparency() -> None:
    values = np.zeros((2, 2, 2), np.uint8)
    values[..., 0], values[0, :, 1] = 50, 255
    assert open_image(packed(Image.fromarray(values)))[:, :, 0].tolist() == [[50, 255]] * 3

    palette = Image.fromarray(np.array([[0, 1], [1, 0]], np.uint8))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert open_image(packed(palette))[:, 0].T.tolist() == [[10, 20, 30], [40, 50, 60]]
    assert open_image(packed(palette, transparency=1))[:, 0].T.tolist() == [[10, 20, 30], [255, 255, 255]]


def test_cmyk_jpeg() -> None:
    cyan = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    pixels = open_image(packed(cyan, "JPEG", quality=95))
    assert pixels.shape == (3, 16, 16)
    red, green, blue = pixels[:, 8, 8].tolist()
    assert red < 5
    assert green > 250
    assert blue > 250


# Seen to fail with convert("L") of 16-bit grey, which clips: every value above 255 became 255.
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    values = np.array([[0, 257, 1000], [30000, 65534, 65535]], np.uint16)
    expected = np.round(values / 257).astype(np.uint8)
    np.testing.assert_array_equal(open_image(packed(Image.fromarray(values), kind))[1], expected)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bit_png_of_every_kind(channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (3, 4, channels), dtype=np.uint16)
    alpha = values[..., -1:] / 65535 if channels in (2, 4) else 1.0
    colours = values[..., : 3 if channels > 2 else 1]
    expected = np.broadcast_to(np.round((colours * alpha + 65535 * (1 - alpha)) / 257), (3, 4, 3))
    np.testing.assert_array_equal(open_image(png16(values)).permute(1, 2, 0), expected)


# Seen to fail without apply_exif_orientation (torchvision) and without exif_transpose (Pillow).
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind: str) -> None:
    values = np.zeros((16, 32, 3), np.uint8)
    values[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise
    pixels = open_image(packed(Image.fromarray(values), kind, exif=exif))
    assert pixels.shape == (3, 32, 16)
    assert pixels[:, :12].min() > 240
    assert pixels[:, 20:].max() < 15


XMP = b"http://ns.adobe.com/xap/1.0/\0"


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return b"Exif\0\0" + exif.tobytes().removeprefix(b"Exif\0\0")


def xmp_of(orientation: int | None) -> bytes:
    turned = "" if orientation is None else f'tiff:Orientation="{orientation}"'
    return XMP + f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description {turned}/></x:xmpmeta>'.encode()


def with_segments(jpeg: bytes, *segments: tuple[int, bytes]) -> bytes:
    """A JPEG with application segments (number, content) before all that it had."""
    body = b"".join(bytes([0xFF, 0xE0 + n]) + struct.pack(">H", len(c) + 2) + c for n, c in segments)
    return jpeg[:2] + body + jpeg[2:]


def oriented(kind: str, orientation: int) -> bytes:
    """A file whose pixels are stored as drawn, and whose metadata give an orientation in the way ``kind`` names."""
    noise = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    if not kind.startswith("JPEG"):
        if kind == "PNG16":
            png, content = png16(noise.astype(np.uint16) * 257), b"eXIf" + exif_of(orientation)[6:]
            length, checksum = struct.pack(">I", len(content) - 4), struct.pack(">I", zlib.crc32(content))
            return png[:33] + length + content + checksum + png[33:]
        options = {"lossless": True} if kind == "WEBP" else {}
        return packed(image, kind, exif=exif_of(orientation)[6:], **options)
    jpeg, exif = packed(image, "JPEG", quality=90), (1, exif_of(orientation))
    icc, iptc = (2, b"ICC_PROFILE\0\1\1" + bytes(128)), (13, b"Photoshop 3.0\0")
    orders = {
        "JPEG": [exif],
        "JPEG XMP, EXIF": [(1, xmp_of(None)), exif],
        "JPEG EXIF, XMP": [exif, (1, xmp_of(None))],
        "JPEG other APP1, EXIF": [(1, b"somebody's own"), exif],
        "JPEG APP2, APP13, XMP, EXIF": [icc, iptc, (1, xmp_of(None)), exif],
        "JPEG XMP alone": [(1, xmp_of(orientation))],
    }
    return with_segments(jpeg, *orders[kind])


KINDS = [
    "JPEG",
    "JPEG XMP, EXIF",
    "JPEG EXIF, XMP",
    "JPEG other APP1, EXIF",
    "JPEG APP2, APP13, XMP, EXIF",
    "JPEG XMP alone",
    "PNG",
    "PNG16",
    "WEBP",
    "TIFF",
]
TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_door_turns_every_file_alike(kind: str, orientation: int, tmp_path: Path) -> None:
    """Seen to fail: torchvision looks for EXIF in the first APP1 segment alone; XMP before it hid the orientation."""
    stored = np.asarray(Image.open(io.BytesIO(oriented(kind, 1))).convert("RGB"))
    expected = TURNS[orientation](stored)
    path = tmp_path / "a"
    path.write_bytes(oriented(kind, orientation))
    with open(path, "rb") as file, Image.open(path) as image:
        for source in (path.read_bytes(), path, file, image):
            np.testing.assert_array_equal(open_image(source).permute(1, 2, 0), expected)
    np.testing.assert_array_equal(open_pil(path), expected)
    np.testing.assert_array_equal(open_single_image(path), expected)
    np.testing.assert_array_equal(load_mask(path, np.ones(expected.shape[:2], dtype=bool))[0], expected)


def test_what_is_no_source_of_an_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(packed(Image.new("RGB", (2, 2))))
    with open(tmp_path / "a.png", encoding="latin-1") as file, pytest.raises(UserError, match="binary mode"):
        open_image(file)
    for source in (3, None, np.zeros((2, 2, 3), np.uint8)):
        with pytest.raises(UserError, match=f"of the type {type(source).__name__}"):
            open_image(source)
    with pytest.raises(UserError, match=r"mask cannot be read \(m\.png: "):
        open_pil(b"text", name="m.png", what="mask")


def test_deep_colour_is_rounded_in_its_own_mode_too() -> None:
    """Seen to fail: Pillow keeps the high byte of 16 bits, so inpainting and encoding saw different pixels."""
    values = np.random.default_rng(0).integers(0, 65536, (3, 4, 3), dtype=np.uint16)
    assert open_pil(png16(values)).mode == "RGB"
    np.testing.assert_array_equal(open_pil(png16(values)), open_image(png16(values)).permute(1, 2, 0))
    assert [open_pil(png16(values[..., :1].repeat(n, 2))).mode for n in (1, 2, 4)] == ["I;16", "LA", "RGBA"]


def test_exif_that_cannot_be_read_turns_nothing() -> None:
    """Seen to fail: Pillow reads it when the file is opened, and again, with an error, in a copy of the image."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, "JPEG")
    data = buffer.getvalue()
    image = Image.open(io.BytesIO(data[:2] + b"\xff\xe1\0\x10Exif\0\0" + bytes(8) + data[2:]))
    assert rgb_pixels(image.copy()).shape == (3, 4, 4)


def test_animation_gives_its_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    pixels = open_image(packed(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert pixels[:, 0, 0].tolist() == [255, 0, 0]


def test_pillow_takes_over_where_torchvision_has_no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    data = [packed(Image.fromarray(gradient())), packed(Image.fromarray(gradient()), "JPEG", quality=90)]
    before = [open_image(d) for d in data]
    monkeypatch.setattr(images, "torchvision_decode", lambda: None)
    monkeypatch.setattr(deep_png, "torchvision_decode", lambda: None)
    after = [open_image(d) for d in data]
    assert torch.equal(before[0], after[0])
    # Both are libjpeg, but perhaps two releases of it.
    assert (before[1].int() - after[1].int()).abs().max() <= 2


def broken_files() -> dict[str, bytes]:
    jpeg, png = packed(Image.fromarray(gradient()), "JPEG"), packed(Image.effect_noise((40, 40), 90))
    return {
        "empty.png": b"",
        "text.png": b"I am no image\n",
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "end.jpg": jpeg[:-30],
        "cut.png": png[: len(png) // 2],
        "header.png": png[:20],
        "signature.png": png[:8],
        "cut.bmp": packed(Image.fromarray(gradient()), "BMP")[:-20],
        "cut.webp": packed(Image.effect_noise((40, 40), 90).convert("RGB"), "WEBP")[:-100],
        "nan.tiff": packed(Image.fromarray(np.full((2, 2), 0.5, np.float32)), "TIFF"),
    }


@pytest.mark.parametrize("name", list(broken_files()))
def test_a_broken_picture_is_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(broken_files()[name])
    with pytest.raises(UserError, match=name.replace(".", r"\.")) as caught:
        open_image(path)
    assert "csrc" not in str(caught.value)


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("place", [60, 90, -20])
def test_a_damaged_png_does_not_end_the_process(depth: int, place: int) -> None:
    """Seen to fail with a segmentation fault: torchvision 0.29 dies of what libpng calls an error."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(noise if depth == 8 else noise[..., 0].astype(np.uint16) * 257)
    data = bytearray(packed(image))
    assert data[24] == depth
    data[place] ^= 8
    with pytest.raises(UserError, match="image cannot be read"):
        open_image(data)


def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # 300 million pixels, of which nothing but the header is ever read.
    data = bytearray(packed(Image.new("L", (4, 4))))
    data[16:24] = struct.pack(">II", 30000, 10000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    with pytest.raises(UserError, match="more pixels than is safe"):
        open_image(bytes(data), name="bomb.png")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be opened .*nowhere\.png"):
        open_image(tmp_path / "nowhere.png")


def test_preprocess_leaves_the_right_size_alone() -> None:
    image = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(preprocess(image, 8), image)


# Seen to fail with the top left square in place of the centre.
@pytest.mark.parametrize("turned", [False, True])
def test_preprocess_takes_the_centre(turned: bool) -> None:
    image = torch.zeros(3, 8, 20, dtype=torch.uint8)
    image[:, :, 6:14] = 200
    image = image.mT if turned else image
    assert (preprocess(image, 8) == 200).all()
    assert (preprocess(image, 4) == 200).all()


# Seen to fail without antialiasing (F.interpolate's bicubic): a fine chequerboard gave stripes, not grey.
def test_preprocess_antialiases() -> None:
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255
    small = preprocess(board.to(torch.uint8).expand(3, -1, -1), 9)
    assert (small.int() - 127).abs().max() <= 12


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (2, 1)])
def test_tiny_pictures_are_enlarged(shape: tuple[int, int]) -> None:
    assert preprocess(torch.full((3, *shape), 9, dtype=torch.uint8), 32).unique().tolist() == [9]


def test_pixels_to_model_and_back_for_every_value() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).expand(3, 1, 256)
    floats = to_model(pixels)
    assert floats.min() == -1
    assert floats.max() == 1
    assert torch.equal(to_uint8(floats), pixels)
    assert to_uint8(torch.tensor([-3.0, 3.0]).expand(3, 1, 2))[0, 0].tolist() == [0, 255]


def test_png_round_trip_and_nothing_left_over(tmp_path: Path) -> None:
    image = torch.from_numpy(gradient()).permute(2, 0, 1)
    save_png(image, tmp_path / "new" / "a.png")
    assert torch.equal(open_image(tmp_path / "new" / "a.png"), image)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]
    assert to_pil(image).size == (7, 5)


def test_grid_is_row_by_row_with_white_cells() -> None:
    images = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 2, 2)
    sheet = image_grid(images, 3, gap=1)
    assert sheet.shape == (3, 5, 8)
    assert sheet[0, 0].tolist() == [0, 0, 255, 1, 1, 255, 2, 2]
    assert sheet[0, 3].tolist() == [3, 3, 255, 4, 4, 255, 255, 255]
    assert image_grid(images).shape == (3, 4, 6)


def test_reading_twice_gives_the_same(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (33, 31, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.jpg", quality=60)
    source = open_source(tmp_path)
    assert torch.equal(source[0], source[0])
