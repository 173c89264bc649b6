"""Metadata of an image that stay true once it is upright and part of it is painted: EXIF, ICC profile, resolution."""

import math
import struct
from typing import Any

from PIL import ExifTags, Image

KEPT = ("icc_profile", "exif", "dpi")
"""Entries of a Pillow image's ``info`` that results keep: bytes, bytes, and pixels per inch (x, y)."""
DROPPED = "dropped metadata"
"""Entry of ``info``: what the file has and the image has no more, a tuple of words."""

_BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, EOFError,
    struct.error,
)  # fmt: skip
"""What Pillow raises of damaged metadata."""

_TAG, _IFD = ExifTags.Base, ExifTags.IFD
_MAIN_TAGS = (
    _TAG.DocumentName, _TAG.ImageDescription, _TAG.Make, _TAG.Model, _TAG.Orientation, _TAG.XResolution,
    _TAG.YResolution, _TAG.ResolutionUnit, _TAG.PageName, _TAG.Software, _TAG.DateTime, _TAG.Artist, _TAG.HostComputer,
    _TAG.Rating, _TAG.RatingPercent, _TAG.Copyright, _TAG.XPTitle, _TAG.XPComment, _TAG.XPAuthor, _TAG.XPKeywords,
    _TAG.XPSubject,
)  # fmt: skip
"""Of the first directory, which in a TIFF also says how its pixels are stored: that belongs to the file."""
_UNTRUE = (
    _TAG.CompressedBitsPerPixel, _TAG.ComponentsConfiguration, 0x9214, 0xA214, _TAG.MakerNote,
    _TAG.ExifInteroperabilityOffset,
)  # fmt: skip
"""Of the camera's directory: how the file was packed, and where its subject was (the two without a name in Pillow)."""


def kept_metadata(image: Image.Image) -> dict[str, Any]:
    """What of the metadata of an image, as opened, holds for its upright copy: entries of ``info``.

    The orientation becomes 1. The thumbnail is dropped because it shows the pixels as they were, and so are the
    camera's maker note, which may hold previews and does not survive being moved, XMP, IPTC and comments. ``dpi`` is
    swapped where the image is turned by a quarter.

    Args:
        image: not changed; Pillow reads its metadata.

    Returns:
        Entries of `KEPT` that there are, and `DROPPED`. Damaged metadata are dropped, not raised.
    """
    found: dict[str, Any] = {}
    dropped: list[str] = []
    quarter = False
    try:
        exif = image.getexif()
        quarter = exif.get(_TAG.Orientation, 1) in (5, 6, 7, 8)
        if content := _kept_exif(exif, quarter, dropped):
            found["exif"] = content
    except _BROKEN:
        dropped.append("EXIF, which cannot be read")
    if dpi := _resolution(image.info.get("dpi")):
        found["dpi"] = dpi[::-1] if quarter else dpi
    if isinstance(profile := image.info.get("icc_profile"), bytes) and profile:
        found["icc_profile"] = profile
    names = {"xmp": "XMP", "XML:com.adobe.xmp": "XMP", "photoshop": "IPTC"}
    dropped += dict.fromkeys(name for key, name in names.items() if image.info.get(key))
    if _has_text(image):
        dropped.append("comments")
    return {**found, DROPPED: tuple(dropped)}


def _has_text(image: Image.Image) -> bool:
    """Whether a JPEG has a comment or a PNG text chunks, besides our mark and what is metadata of another kind."""
    comment = image.info.get("comment") or b""
    data = comment if isinstance(comment, bytes) else str(comment).encode()
    names = set(getattr(image, "text", ())) - {"Software", "ggm-image", "XML:com.adobe.xmp", "Raw profile type exif"}
    return bool(names) or bool(data and not data.startswith(b"ggm-image "))


def _kept_exif(exif: Image.Exif, quarter: bool, dropped: list[str]) -> bytes:
    """EXIF as bytes; empty where there is nothing to keep."""
    kept = Image.Exif()
    damaged = False
    turned = {_TAG.XResolution: _TAG.YResolution, _TAG.YResolution: _TAG.XResolution} if quarter else {}
    for tag in _MAIN_TAGS:
        if (source := turned.get(tag, tag)) in exif:
            value = 1 if tag == _TAG.Orientation else exif[source]
            damaged |= not _add(kept, None, tag, value)
    for directory in (_IFD.Exif, _IFD.GPSInfo):
        for inner, value in exif.get_ifd(directory).items():
            if directory == _IFD.GPSInfo or inner not in _UNTRUE:
                damaged |= not _add(kept, directory, inner, value)
    if exif.get_ifd(_IFD.IFD1):
        dropped.append("the EXIF thumbnail, which shows the old pixels")
    if _TAG.MakerNote in exif.get_ifd(_IFD.Exif):
        dropped.append("the EXIF maker note")
    if damaged:
        dropped.append("damaged EXIF entries")
    return kept.tobytes() if len(kept) else b""


def _add(kept: Image.Exif, directory: int | None, tag: int, value: Any) -> bool:
    """Add an entry if it can be written; False if not."""
    alone = Image.Exif()
    try:
        alone[tag if directory is None else directory] = value if directory is None else {tag: value}
        alone.tobytes()
    except _BROKEN:
        return False
    if directory is None:
        kept[tag] = value
    else:
        kept[directory] = {**kept.get(directory, {}), tag: value}
    return True


def _resolution(dpi: Any) -> tuple[float, float] | None:
    """Pixels per inch that every format can hold; None for any other value."""
    try:
        x, y = (float(value) for value in dpi)
    except _BROKEN:
        return None
    return (x, y) if all(math.isfinite(value) and 1 <= value <= 65_535 for value in (x, y)) else None


def with_metadata(result: Image.Image, source: Image.Image) -> Image.Image:
    """``result`` with the metadata of ``source``.

    Numbers mean the same colours only under the same ICC profile.
    """
    result.info |= {key: source.info[key] for key in (*KEPT, DROPPED) if source.info.get(key)}
    return result
