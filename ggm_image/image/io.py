"""Images: one file to a ``uint8`` tensor, one tensor to a square of the right size, and back to a PNG.

`open_image` and `open_pil` are the only two functions of the package that open an image's file.

Every image ends as 8-bit RGB, by the same rules on every machine: orientation applied as Pillow reads it from the
metadata (EXIF in any segment, XMP, TIFF tags); grey repeated to three channels; transparent parts composited on white;
16 bits a channel scaled to 8 (v / 257, rounded), never clipped; CMYK and palettes by Pillow's conversion; the first
frame of an animation. JPEG and PNG of 16 bits are decoded by torchvision where it gives exactly that, everything else
by Pillow. torchvision's decoder of PNG ends the process at the first damaged byte: it is given nothing that Pillow has
not read to the end.
"""

import io
import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.image.deep_png import deep_pixels, deep_to_rgb, to_8_bits, torchvision_decode
from ggm_image.image.metadata import DROPPED, KEPT, kept_metadata, with_metadata
from ggm_image.io.files import atomic_path, read_plain

_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    RuntimeError,
    EOFError,
    OverflowError,
    TypeError,
    AttributeError,
    LookupError,
    Image.DecompressionBombError,
    struct.error,
    zlib.error,
)
"""What Pillow and torchvision raise of damaged files."""


class SupportsRead(Protocol):
    """A binary file object."""

    def read(self, size: int = -1, /) -> bytes: ...


Buffer = bytes | bytearray | memoryview
Source = str | os.PathLike[str] | Buffer | SupportsRead | Image.Image
"""What `open_image` accepts."""


def open_image(source: Source, *, name: str = "", what: str = "image") -> UInt8[Tensor, "3 h w"]:
    """Open one image as 8-bit RGB, upright. All pixels that this package computes with come from here or `open_pil`.

    The orientation is the one that Pillow reads (`PIL.ImageOps.exif_transpose`), in every format. Transparent parts
    are composited on white: a pixel of colour c and opacity a becomes a c + (1 - a) 255.

    Args:
        source: a path; the bytes of a file (JPEG, PNG, WebP, BMP, GIF, TIFF and other formats of Pillow); a binary
            file object, read from its position to its end and left open; or a Pillow image, which is not changed.
        name: what to call the image in an error; its path by default.
        what: the kind of input in an error.

    Returns:
        The pixels, in [0, 255], on the CPU.
    """
    if isinstance(source, Image.Image):
        with _readable(name or _name_of(source), what):
            return rgb_pixels(source)
    data, name = _content(source, name, what)
    with _readable(name, what, data):
        return _decode(data)


def open_pil(source: Source, *, name: str = "", what: str = "image", single: bool = False) -> Image.Image:
    """Open one image upright in its own mode; of an animation the first frame.

    16-bit colour becomes 8-bit, rounded; 16-bit grey keeps its 16 bits. Its ``info`` has the metadata that
    `kept_metadata` keeps.

    Args:
        source, name, what: as for `open_image`.
        single: refuse animations.
    """
    if isinstance(source, Image.Image):
        with _readable(name or _name_of(source), what):
            return _upright(source)
    data, name = _content(source, name, what)
    with _readable(name, what, data), Image.open(io.BytesIO(data)) as image:
        # a phone's MPO file holds previews beside the image
        if single and getattr(image, "is_animated", False) and image.format != "MPO":
            got = f"{name}: {getattr(image, 'n_frames', 2)} frames"
            raise UserError(f"{what} must be a single image", got, "save one frame of it")
        pixels = deep_pixels(data, image) if image.mode in ("LA", "RGB", "RGBA") else None
        if pixels is None:
            return _upright(image)
        shallow = Image.fromarray(to_8_bits(pixels).permute(1, 2, 0).squeeze(2).contiguous().numpy())
        shallow.info = dict(image.info)
        return _upright(shallow)


def header_size(content: bytes) -> tuple[int, int] | None:
    """Width and height of an upright image by its header alone; None where that cannot be read."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            return (height, width) if _orientation(image) >= 5 else (width, height)
    except _BROKEN:
        return None


def apply_exif_orientation(image: Image.Image) -> Image.Image:
    """A copy turned as its metadata says; as it is, where these cannot be read."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except _BROKEN:
        return image.copy()


def _upright(image: Image.Image) -> Image.Image:
    """A copy turned as its metadata says, with what of these still holds."""
    kept = kept_metadata(image)  # first: Pillow turns a TIFF when it loads it, and forgets the orientation
    turned = apply_exif_orientation(image)
    for key in KEPT:
        turned.info.pop(key, None)
    turned.info.update(kept)
    turned.getexif().load(kept.get("exif", b""))  # which Pillow may have parsed before it turned the image
    return turned


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8, by which `apply_exif_orientation` turns the image."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except _BROKEN:
        return 1


def _turned(pixels: Tensor, orientation: int) -> Tensor:
    """Pixels (c, h, w) as they are stored, turned as `PIL.ImageOps.exif_transpose` turns an image."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.mT
    flips = {2: (-1,), 3: (-2, -1), 4: (-2,), 6: (-1,), 7: (-2, -1), 8: (-2,)}.get(orientation, ())
    return pixels.flip(flips).contiguous()


def _name_of(source: object) -> str:
    """A name for an error."""
    name = getattr(source, "filename", None) or getattr(source, "name", None)
    return str(name) if isinstance(name, str | os.PathLike) and str(name) else type(source).__name__


def _content(source: str | os.PathLike[str] | Buffer | SupportsRead, name: str, what: str) -> tuple[bytearray, str]:
    """The bytes of an image's file, and a name for errors."""
    if isinstance(source, bytes | bytearray | memoryview):
        return bytearray(source), name or "bytes"
    if not isinstance(source, str | os.PathLike) and not hasattr(source, "read"):
        fix = "give a path, the bytes of a file, a binary file object or a Pillow image"
        raise UserError(f"{what} cannot be opened", f"{name or what} is of the type {type(source).__name__}", fix)
    try:
        if isinstance(source, str | os.PathLike):
            name = name or str(source)
            return bytearray(read_plain(source)), name
        name = name or _name_of(source)
        data = source.read()
    except OSError as error:
        raise UserError(f"{what} cannot be opened", f"{name}: {error.strerror or error}", "check the path") from error
    if not isinstance(data, bytes | bytearray | memoryview):
        raise UserError(f"{what} cannot be opened", f"{name}: opened as text", "open the file in binary mode")
    return bytearray(data), name


@contextmanager
def _readable(name: str, what: str, data: bytearray | None = None) -> Iterator[None]:
    """Turn any error that a decoder raises for a damaged file into one line with the image's name."""
    try:
        yield
    except _BROKEN as error:
        fix = "replace or remove it"
        if isinstance(error, UserError):
            if str(error.got).startswith(f"{name}: "):
                raise
            raise UserError(error.what, f"{name}: {error.got}", error.fix) from error
        if isinstance(error, UnidentifiedImageError):
            why = "empty file" if data is not None and not data else "not an image in any format that Pillow knows"
        elif isinstance(error, Image.DecompressionBombError):
            why, fix = "more pixels than is safe to unpack", "resize it first"
        else:
            # torchvision puts the place in its C++ sources before the reason.
            why = re.sub(r"^.*\.cpp:\d+, ", "", (str(error).splitlines() or [type(error).__name__])[0])
        raise UserError(f"{what} cannot be read", f"{name}: {why}", fix) from error


def _decode(data: bytearray) -> Tensor:
    # Pillow reads the header alone here: format, mode, orientation, and a refusal of decompression bombs.
    with Image.open(io.BytesIO(data)) as image:
        deep = deep_pixels(data, image)
        if deep is not None:
            return _turned(deep_to_rgb(deep), _orientation(image))
        # Pillow's pixels bit for bit, in half the time. It is not asked for the orientation: it looks for EXIF in the
        # first APP1 segment alone, which may be XMP.
        decode = torchvision_decode()
        if decode is None or image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
            return rgb_pixels(image)
        orientation = _orientation(image)
    pixels = decode(torch.frombuffer(data, dtype=torch.uint8), mode="RGB", apply_exif_orientation=False)
    return _turned(pixels, orientation)


def rgb_pixels(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
    """A Pillow image of any mode as 8-bit RGB, upright, by the rules above."""
    image = apply_exif_orientation(image)
    if image.mode == "F":
        raise UserError("pixels must be integers", "floating-point image", "convert it to 8 bits a channel first")
    if image.mode.startswith("I"):  # 16 bits a pixel, for some formats held in 32
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise UserError(
                "pixels must lie in [0, 65535]", f"{values.min()} to {values.max()}", "convert it to 8 bits first"
            )
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return from_pil(image)


def from_pil(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
    """A Pillow image's pixels, without regard to transparency or EXIF."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()


def to_pil(image: UInt8[Tensor, "3 h w"]) -> Image.Image:
    """The image as Pillow's."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())


def save_png(image: UInt8[Tensor, "3 h w"], path: str | os.PathLike[str]) -> None:
    """Write one image as PNG, atomically."""
    with atomic_path(path) as temporary:
        to_pil(image).save(temporary, format="PNG")


def to_storable_mode(image: Image.Image) -> Image.Image:
    """The image in a mode that PNG keeps bit for bit and that can hold new colours.

    L, LA, RGB, RGBA and I;16 stay as they are; palettes, CMYK and the like become RGB, or RGBA where they
    have transparent parts. `open_pil` gives 16-bit colour as 8-bit RGB.
    """
    mode = image.mode
    if mode in ("LA", "RGBA") or (mode in ("L", "RGB") and "transparency" not in image.info):
        return image
    if mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            got = f"{values.min()} to {values.max()}"
            raise UserError("pixels must lie in [0, 65535]", got, "convert the image to 8 or 16 bits")
        return with_metadata(Image.fromarray(values.astype(np.uint16)), image)
    if mode == "F":
        raise UserError("pixels must be integers", "floating-point image", "convert it to 8 or 16 bits")
    if mode == "1":
        return image.convert("L")
    if mode == "L":
        return image.convert("LA")
    converted = image.convert("RGBA" if image.has_transparency_data else "RGB")
    if mode == "CMYK" and converted.info.pop("icc_profile", None):
        converted.info[DROPPED] = (*converted.info.get(DROPPED, ()), "the ICC profile, which describes inks")
    return converted
