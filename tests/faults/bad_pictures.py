"""Images of every format and mode that Pillow writes, cut and changed ones, and small files that promise much."""

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, features
from PIL.PngImagePlugin import PngInfo

from tests.faults.corpus import DONE, EITHER, REFUSED, Case, World

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F")
FORMATS = {
    "PNG": "png", "JPEG": "jpg", "WEBP": "webp", "BMP": "bmp", "GIF": "gif", "TIFF": "tif", "PPM": "ppm", "TGA": "tga",
    "JPEG2000": "jp2", "AVIF": "avif",
}  # fmt: skip
"""Formats that are looked for in folders, with a suffix."""
OTHERS = ("PCX", "ICO", "SGI", "DDS", "ICNS", "IM", "XBM", "SPIDER", "MSP", "EPS", "PDF", "PALM", "QOI", "DIB", "MPO")
"""Formats that Pillow writes and nobody gives us, under the name of another."""
_NEEDS = {"WEBP": "webp", "JPEG2000": "jpg_2000", "AVIF": "avif"}


def picture(mode: str, side: int = 16) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 4), dtype=np.uint8)
    if mode in ("I", "I;16", "F"):
        return Image.fromarray(pixels[..., 0].astype({"I": np.int32, "I;16": np.uint16, "F": np.float32}[mode]))
    return Image.fromarray(pixels).convert("RGB" if mode in ("LAB", "HSV", "YCbCr", "CMYK") else "RGBA").convert(mode)


def saved(mode: str, kind: str) -> bytes:
    """An image's file; empty where Pillow does not write such ones."""
    buffer = io.BytesIO()
    try:
        if mode == "PA":
            image = picture("P").convert("PA")
        elif mode == "LAB":
            image = Image.frombytes("LAB", (16, 16), bytes(range(256)) * 3)
        else:
            image = picture(mode)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.save(buffer, format=kind)
    except (OSError, ValueError, KeyError, AttributeError, SystemError):
        return b""
    return buffer.getvalue()


def _at_hand() -> dict[str, str]:
    return {kind: suffix for kind, suffix in FORMATS.items() if kind not in _NEEDS or features.check(_NEEDS[kind])}


def _file(data: bytes, name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(data)
        return path

    return write


class Readers:
    """The commands that read an image, one after the other."""

    def __init__(self, world: World) -> None:
        self.world, self.turn = world, 0

    def each(self) -> dict[str, Callable[[Path, Path], list[str]]]:
        w = self.world
        return {
            "encode": lambda path, folder: w.encode(path, folder / "out"),
            "signal": lambda path, folder: w.signal(path, folder / "out.png"),
            "inpaint": lambda path, folder: w.inpaint(folder / "out.png", image=path),
            "mask": lambda path, folder: w.inpaint(folder / "out.png", mask=path),
            "fid": lambda path, folder: w.fid(w.root / "pictures", reference=path),
            "train-tokenizer": lambda path, folder: w.train_tokenizer(folder / "run", data=path),
        }

    def case(self, what: str, data: bytes, name: str, command: str = "", allowed: frozenset[int] = EITHER) -> Case:
        """An image for one command: the named one, or the next in turn."""
        commands = self.each()
        command = command or list(commands)[self.turn % len(commands)]
        self.turn += 1
        return Case(f"{command}: {what}", lambda folder: commands[command](_file(data, name)(folder), folder), allowed)


def cases(world: World) -> dict[str, list[Case]]:
    readers = Readers(world)
    return {
        "formats": _formats(readers),
        "cut images": _cut(readers),
        "changed images": _changed(readers),
        "bombs": _bombs(readers),
    }


def _formats(readers: Readers) -> list[Case]:
    found = []
    for kind, suffix in _at_hand().items():
        for mode in MODES:
            if data := saved(mode, kind):
                allowed = EITHER if mode in ("F", "I") else DONE
                found.append(readers.case(f"{kind} of mode {mode}", data, f"a.{suffix}", "encode", allowed))
                found.append(readers.case(f"{kind} of mode {mode}", data, f"a.{suffix}", "inpaint", allowed))
        plain = saved("RGB", kind) or saved("L", kind)
        found += [readers.case(kind, plain, f"a.{suffix}", command) for command in ("signal", "mask", "fid")]
        found.append(readers.case(f"{kind} called .tif", plain, "a.tif"))
    for kind in OTHERS:
        for mode in ("1", "RGB", "L", "F"):
            if data := saved(mode, kind):
                found.append(readers.case(f"{kind} of mode {mode} called .png", data, "a.png"))
    return found


def _cut(readers: Readers) -> list[Case]:
    found = []
    for kind, suffix in _at_hand().items():
        data = saved("RGB", kind)
        for name, length in (
            ("empty", 0),
            ("one byte", 1),
            ("in its signature", 7),
            ("in its header", 20),
            ("a quarter", len(data) // 4),
            ("half", len(data) // 2),
            ("without its last byte", len(data) - 1),
            ("and more behind it", len(data) + 99),
        ):
            cut = data[:length] + bytes(max(0, length - len(data)))
            found.append(readers.case(f"{kind}, {name}", cut, f"a.{suffix}"))
    return found


def _changed(readers: Readers) -> list[Case]:
    found = []
    rng = np.random.default_rng(1)
    for kind, suffix in _at_hand().items():
        data = np.frombuffer(saved("RGB", kind), dtype=np.uint8)
        for where, (low, high) in {"header": (4, 60), "body": (60, len(data))}.items():
            for number in range(3):
                spoilt = data.copy()
                places = rng.integers(low, min(high, len(data)), 1 + 4 * number)
                spoilt[places] ^= rng.integers(1, 256, len(places)).astype(np.uint8)
                what = f"{kind}, {len(places)} bytes of its {where} changed, {number}"
                found.append(readers.case(what, spoilt.tobytes(), f"a.{suffix}"))
    return found


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, *chunks: bytes, depth: int = 8, colour: int = 2, rows: bytes | None = None) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    if rows is None:
        rows = zlib.compress(bytes(min(height * (1 + 3 * width), 1 << 20)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _tiff(tags: list[tuple[int, int, int, int]], following: int = 0, tail: bytes = bytes(64)) -> bytes:
    """A little-endian TIFF of one directory: (tag, type, count, value)."""
    body = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return body + struct.pack("<I", following) + tail


def _exif(kind: int, value: int) -> bytes:
    """A JPEG whose orientation has this type (3 is a short number, 2 text, 4 a long number) and value."""
    buffer = io.BytesIO()
    picture("RGB").save(buffer, format="JPEG", exif=b"Exif\0\0" + _tiff([(0x0112, kind, 1, value)]))
    return buffer.getvalue()


def _promising() -> dict[str, tuple[str, bytes]]:
    """Files by what they promise, with a suffix."""
    text = PngInfo()
    text.add_text("a", "x" * 100, zip=True)
    noted, frames = io.BytesIO(), io.BytesIO()
    picture("RGB").save(noted, format="PNG", pnginfo=text)
    picture("P").save(frames, format="GIF", save_all=True, append_images=[picture("P", 16)] * 300)
    size = [(256, 4, 1, 60000), (257, 4, 1, 60000), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 100),
            (277, 3, 1, 1), (278, 4, 1, 60000), (279, 4, 1, 16)]  # fmt: skip
    small = [(tag, kind, count, 8 if tag in (256, 257, 278) else value) for tag, kind, count, value in size]
    zeros = zlib.compress(bytes(50 << 20))
    return {
        "PNG of 100,000 squared": ("png", _png(100_000, 100_000)),
        "PNG of 2^31 - 1 squared": ("png", _png(2**31 - 1, 2**31 - 1)),
        "PNG of no width": ("png", _png(0, 10)),
        "PNG of one row of a million": ("png", _png(1_000_000, 1)),
        "PNG of one column of 100,000": ("png", _png(1, 100_000)),
        "PNG of 9,400 squared, nothing in it": ("png", _png(9_400, 9_400)),
        "PNG of 12,000 squared, nothing in it": ("png", _png(12_000, 12_000)),
        "PNG whose text unpacks to 50 MiB": ("png", _png(16, 16, _chunk(b"zTXt", b"a\0\0" + zeros))),
        "PNG whose profile unpacks to 50 MiB": ("png", _png(16, 16, _chunk(b"iCCP", b"a\0\0" + zeros))),
        "PNG whose pixels unpack to 50 MiB": ("png", _png(16, 16, rows=zeros)),
        "PNG with a thousand texts": ("png", _png(16, 16, *[_chunk(b"tEXt", b"a\0b")] * 1000)),
        "PNG with an unknown critical chunk": ("png", _png(16, 16, _chunk(b"ABCD", b"x"))),
        "PNG of an unknown colour": ("png", _png(16, 16, colour=5)),
        "PNG of 7 bits": ("png", _png(16, 16, depth=7)),
        "PNG palette without palette": ("png", _png(16, 16, colour=3)),
        "PNG with a wrong sum": ("png", _png(16, 16).replace(b"IDAT", b"IDAT", 1)[:-20] + bytes(20)),
        "PNG with packed text": ("png", noted.getvalue()),
        "APNG that promises 2^32 - 1 frames": ("png", _png(16, 16, _chunk(b"acTL", struct.pack(">II", 2**32 - 1, 0)))),
        "GIF of 65,535 squared": ("gif", b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b";"),
        "GIF of 300 frames": ("gif", frames.getvalue()),
        "BMP of 2^31 - 1 squared": ("bmp", saved("RGB", "BMP")[:18] + struct.pack("<ii", 2**31 - 1, 2**31 - 1)),
        "BMP of a negative width": ("bmp", saved("RGB", "BMP")[:18] + struct.pack("<ii", -16, 16) + bytes(900)),
        "PPM of 10^9 squared": ("ppm", b"P6 999999999 999999999 255\n" + bytes(9)),
        "PPM of a number of 5,000 digits": ("ppm", b"P6 " + b"9" * 5000 + b" 1 255\n"),
        "PPM of a negative size": ("ppm", b"P6 -4 4 255\n" + bytes(48)),
        "PPM of 10^5 levels": ("ppm", b"P6 4 4 100000\n" + bytes(96)),
        "PPM in letters": ("ppm", b"P3 2 2 255\n" + b"a b c " * 4),
        "TIFF of 60,000 squared": ("tif", _tiff(size)),
        "TIFF whose directory follows itself": ("tif", _tiff(small, following=8)),
        "TIFF whose next directory is nowhere": ("tif", _tiff(small, following=2**32 - 8)),
        "TIFF whose strips are nowhere": ("tif", _tiff([(t, k, c, 2**31 if t == 273 else v) for t, k, c, v in small])),
        "TIFF with 2^32 - 1 values in a tag": ("tif", _tiff([*small, (700, 7, 2**32 - 1, 8)])),
        "TIFF without tags": ("tif", _tiff([])),
        "TIFF of an unknown compression": ("tif", _tiff([(t, k, c, 4711 if t == 259 else v) for t, k, c, v in small])),
        "TGA of 65,535 squared": ("tga", bytes([0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0]) + b"\xff\xff\xff\xff\x18\0"),
        "JPEG of 65,500 squared": ("jpg", _jpeg_of(65_500)),
        "JPEG of 9,300 squared, nothing in it": ("jpg", _jpeg_of(9_300)),
        "JPEG turned by an unknown orientation": ("jpg", _exif(3, 9)),
        "JPEG turned by a text": ("jpg", _exif(2, 65)),
        "JPEG turned by 2^31": ("jpg", _exif(4, 2**31)),
        "JPEG with no EXIF in its EXIF": ("jpg", saved("RGB", "JPEG")[:2] + b"\xff\xe1\0\x10Exif\0\0" + bytes(8)
                                          + saved("RGB", "JPEG")[2:]),
        "JPEG of 4 pixels": ("jpg", _of_side("JPEG", 2)),
        "SVG": ("png", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        "HTML": ("jpg", b"<!doctype html><title>404</title>"),
        "text": ("png", b"not an image\n"),
        "zeros": ("png", bytes(4096)),
    }  # fmt: skip


def _of_side(kind: str, side: int) -> bytes:
    buffer = io.BytesIO()
    picture("RGB", side).save(buffer, format=kind)
    return buffer.getvalue()


def _jpeg_of(side: int) -> bytes:
    data = bytearray(saved("RGB", "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", side, side)
    return bytes(data)


def _bombs(readers: Readers) -> list[Case]:
    found = []
    for what, (suffix, data) in _promising().items():
        for command in ("encode", "signal"):
            if command == "signal" and "9,300" in what:
                continue  # a third of a million windows, with a progress bar: hours of honest work
            allowed = REFUSED if what in ("text", "zeros", "HTML", "SVG") else EITHER
            found.append(readers.case(what, data, f"a.{suffix}", command, allowed))
    return found
