"""The mark in image files that we write: the command, its settings, and the SHA-256 of everything else in the file.

A file whose mark is missing, or no longer matches, was written by another program or edited since. Each format holds
the mark, a JSON text, where its readers ignore it: PNG in a text chunk, GIF and JPEG in a comment, WebP in a chunk of
its own at the end, TIFF in a private tag.
"""

import hashlib
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

KEYWORD = b"ggm-image"
SOFTWARE = b"Software\0ggm-image"

_PNG, _GIF, _JPEG = b"\x89PNG\r\n\x1a\n", b"GIF8", b"\xff\xd8\xff"
_HEADER_END = 33  # of a PNG: signature, and IHDR of 13 bytes
_MOST_MARK = 65_000  # Pillow refuses PNG text of a megabyte; a JPEG comment has at most 65,533 bytes
_GIF_COMMENT = b"\x21\xfe"
_JPEG_COMMENT, _JPEG_SCAN = 0xFE, 0xDA
_WEBP_CHUNK = b"GGMI"
TIFF_TAG = 65142
"""Of the mark: in the range that TIFF leaves to private use."""
_NO_DIGEST = "0" * 64


def mark(data: bytes, command: str, settings: Mapping[str, Any] | None = None) -> bytes:
    """An image file with our mark; the same bytes for the same file and settings.

    Args:
        data: a whole PNG, JPEG, WebP or TIFF file without a mark.
        settings: what the image was made with, for JSON. They are left out where the mark would be larger than 65,000
            bytes.
    """
    if data.startswith(_PNG):
        return mark_png(data, command, settings)
    if data.startswith(_JPEG):
        return _mark_jpeg(data, _text(data, command, settings))
    if _is_webp(data):
        return _mark_webp(data, _text(data, command, settings))
    if _is_tiff(data):
        return _mark_tiff(data, _text(None, command, settings))
    raise ValueError("no format that carries a mark")


def mark_png(data: bytes, command: str, settings: Mapping[str, Any] | None = None) -> bytes:
    """As `mark`, of a PNG file; the mark is the text chunk ``ggm-image``."""
    text = _text(data, command, settings)
    chunks = _chunk(b"tEXt", SOFTWARE) + _chunk(b"tEXt", KEYWORD + b"\0" + text)
    return data[:_HEADER_END] + chunks + data[_HEADER_END:]


def mark_gif(data: bytes, command: str) -> bytes:
    """A whole GIF file with our mark as its last block, a comment."""
    digest = hashlib.sha256(data).hexdigest()
    text = KEYWORD + b" " + json.dumps({"command": command, "sha256": digest}).encode("ascii")
    assert data[-1:] == b"\x3b", "a GIF ends with its trailer"
    assert len(text) < 256, "one sub-block"
    return data[:-1] + _GIF_COMMENT + bytes([len(text)]) + text + b"\0\x3b"


def read_mark(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Our mark in an image file: ``command``, ``sha256``, and but for a GIF ``settings``.

    Returns:
        The mark with an entry ``intact``, whether the rest of the file is as it was written; None if there is none.
    """
    if not os.path.isfile(path):
        return None
    data = Path(path).read_bytes()
    without: Callable[[bytes], tuple[bytes, bytes]]
    # The content decides, not the suffix: a file may have been renamed.
    if data.startswith(_PNG):
        without = _png_without_mark
    elif data.startswith(_GIF):
        without = _gif_without_mark
    elif data.startswith(_JPEG):
        without = _jpeg_without_mark
    elif _is_webp(data):
        without = _webp_without_mark
    elif _is_tiff(data):
        without = _tiff_without_mark
    else:
        return None
    # Anything unreadable, in a damaged or foreign file, counts as no mark, as in a file of another program.
    try:
        rest, text = without(data)
        found = json.loads(text)
        return {**found, "intact": hashlib.sha256(rest).hexdigest() == found["sha256"]}
    except (ValueError, LookupError, TypeError, struct.error, RecursionError):
        return None


def _text(data: bytes | None, command: str, settings: Mapping[str, Any] | None) -> bytes:
    """The mark's JSON; with an empty digest where ``data`` is None."""
    digest = _NO_DIGEST if data is None else hashlib.sha256(data).hexdigest()
    entries: dict[str, Any] = {"command": command, "sha256": digest}
    text = json.dumps({**entries, "settings": dict(settings or {})}).encode("ascii")
    return text if len(text) <= _MOST_MARK else json.dumps(entries).encode("ascii")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png_without_mark(data: bytes) -> tuple[bytes, bytes]:
    """The file as it was before it was marked, and the mark's text."""
    kept, text, place = bytearray(_PNG), None, len(_PNG)
    while place + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        end = place + length + 12
        content = data[place + 8 : end - 4]
        if kind == b"tEXt" and content.startswith(KEYWORD + b"\0") and text is None:
            text = content[len(KEYWORD) + 1 :]
        elif not (kind == b"tEXt" and content == SOFTWARE):
            kept += data[place:end]
        place = end
    if text is None:
        raise ValueError("no mark")
    return bytes(kept) + data[place:], text


def _gif_without_mark(data: bytes) -> tuple[bytes, bytes]:
    start = data.rindex(_GIF_COMMENT)
    length = data[start + 2]
    text = data[start + 3 : start + 3 + length]
    if not text.startswith(KEYWORD + b" ") or data[start + 3 + length :] != b"\0\x3b":
        raise ValueError("no mark")
    return data[:start] + b"\x3b", text[len(KEYWORD) + 1 :]


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Kind, start and end of each segment in front of the first scan, and the scan's own."""
    place, kind = 2, 0
    while kind != _JPEG_SCAN:
        start, kind, length = struct.unpack(">BBH", data[place : place + 4])
        if start != 0xFF:
            raise ValueError("no segment")
        yield kind, place, place + 2 + length
        place += 2 + length


def _mark_jpeg(data: bytes, text: bytes) -> bytes:
    """EXIF and ICC profile, in APP segments, come first: some readers look for them there only."""
    place = next(start for kind, start, _ in _jpeg_segments(data) if not 0xE0 <= kind <= 0xEF)
    content = KEYWORD + b" " + text
    return data[:place] + struct.pack(">BBH", 0xFF, _JPEG_COMMENT, len(content) + 2) + content + data[place:]


def _jpeg_without_mark(data: bytes) -> tuple[bytes, bytes]:
    for kind, start, end in _jpeg_segments(data):
        content = data[start + 4 : end]
        if kind == _JPEG_COMMENT and content.startswith(KEYWORD + b" "):
            return data[:start] + data[end:], content[len(KEYWORD) + 1 :]
    raise ValueError("no mark")


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _with_riff_size(data: bytes) -> bytes:
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


def _mark_webp(data: bytes, text: bytes) -> bytes:
    chunk = _WEBP_CHUNK + struct.pack("<I", len(text)) + text + b"\0" * (len(text) % 2)
    return _with_riff_size(data + chunk)


def _webp_without_mark(data: bytes) -> tuple[bytes, bytes]:
    place = 12
    while place + 8 <= len(data):
        kind, length = struct.unpack("<4sI", data[place : place + 8])
        end = place + 8 + length + length % 2
        if kind == _WEBP_CHUNK:
            return _with_riff_size(data[:place] + data[end:]), data[place + 8 : place + 8 + length]
        place = end
    raise ValueError("no mark")


def _is_tiff(data: bytes) -> bool:
    return data[:4] in (b"II*\0", b"MM\0*")


def _tiff_entries(data: bytes) -> tuple[str, list[bytes], bytes]:
    """Byte order, the entries of the first directory, and the offset of the next, as bytes."""
    order = "<" if data[:1] == b"I" else ">"
    (place,) = struct.unpack(order + "I", data[4:8])
    (count,) = struct.unpack(order + "H", data[place : place + 2])
    end = place + 2 + 12 * count
    return order, [data[k : k + 12] for k in range(place + 2, end, 12)], data[end : end + 4]


def _mark_tiff(data: bytes, text: bytes) -> bytes:
    """With a larger copy of the first directory at its end; the digest is that of the whole file without it."""
    order, entries, following = _tiff_entries(data)
    body = data + b"\0" * (len(data) % 2)
    place = len(body)
    content = text + b"\0"
    body += content + b"\0" * (len(content) % 2)
    entries.append(struct.pack(order + "HHII", TIFF_TAG, 2, len(content), place))
    entries.sort(key=lambda entry: struct.unpack(order + "H", entry[:2]))
    directory = struct.pack(order + "H", len(entries)) + b"".join(entries) + following
    whole = body[:4] + struct.pack(order + "I", len(body)) + body[8:] + directory
    digest = hashlib.sha256(whole).hexdigest().encode("ascii")
    start = whole.index(_NO_DIGEST.encode("ascii"), place)
    return whole[:start] + digest + whole[start + len(digest) :]


def _tiff_without_mark(data: bytes) -> tuple[bytes, bytes]:
    order, entries, _ = _tiff_entries(data)
    for entry in entries:
        tag, _, count, place = struct.unpack(order + "HHII", entry)
        if tag == TIFF_TAG:
            text = data[place : place + count - 1]
            digest = str(json.loads(text)["sha256"]).encode("ascii")
            start = data.index(digest, place)
            if len(digest) != len(_NO_DIGEST) or start >= place + count:
                break
            return data[:start] + _NO_DIGEST.encode("ascii") + data[start + len(digest) :], text
    raise ValueError("no mark")
