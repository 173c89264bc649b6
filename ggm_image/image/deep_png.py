"""PNG of 16 bits a channel, of which Pillow gives 8: decoded by torchvision, once Pillow has read them to the end."""

import functools
import struct
import zlib
from collections.abc import Callable

import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@functools.cache
def torchvision_decode() -> Callable[..., Tensor] | None:
    """torchvision's decoder, or None once a release has none (announced in 0.29): then Pillow does all."""
    try:
        from torchvision.io import decode_image
    except ImportError:
        return None
    return decode_image


def deep_pixels(data: bytearray, image: Image.Image) -> Tensor | None:
    """The pixels (c, h, w) of a 16-bit PNG as stored, of which Pillow gives 8 bits; None of any other file."""
    if data[:8] != _PNG_SIGNATURE or data[24] != 16 or (decode := torchvision_decode()) is None:
        return None
    image.load()
    return decode(torch.frombuffer(_sound_png(data), dtype=torch.uint8), mode="UNCHANGED", apply_exif_orientation=False)


def _sound_png(data: bytearray) -> bytearray:
    """Its pixels and what they need, with the right sums; ValueError where they do not unpack to their end."""
    kept, packed, place = bytearray(_PNG_SIGNATURE), b"", len(_PNG_SIGNATURE)
    while place + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"):
            content = bytes(data[place + 8 : place + 8 + length])
            packed += content if kind == b"IDAT" else b""
            kept += struct.pack(">I4s", len(content), kind) + content
            kept += struct.pack(">I", zlib.crc32(kind + content))
        place += length + 12
        if kind == b"IEND":
            break
    whole = zlib.decompressobj()
    width, height = struct.unpack(">II", data[16:24])
    whole.decompress(packed, height * (8 * width + 2) + 64)  # of four channels, interlaced
    if not whole.eof or kept[-8:-4] != b"IEND":
        raise ValueError("its pixels are cut off")
    return kept


def deep_to_rgb(pixels: Tensor) -> Tensor:
    """16-bit grey, grey+alpha, RGB or RGBA (c, h, w) to 8-bit RGB on white."""
    values = pixels.to(torch.float64)
    colours = values.shape[0] - (values.shape[0] + 1) % 2
    if colours != values.shape[0]:
        alpha = values[colours:] / 65535
        values = values[:colours] * alpha + 65535 * (1 - alpha)
    return to_8_bits(values).expand(3, -1, -1).contiguous()


def to_8_bits(values: Tensor) -> UInt8[Tensor, "c h w"]:
    """Values in [0, 65535] to the nearest in [0, 255]."""
    return (values.to(torch.float64) / 257).round().to(torch.uint8)
