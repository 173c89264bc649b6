"""Documents of text in a fixed order, read as bytes in pieces of bounded size.

A source is a file, a folder, a tar archive, or a data set of the Hugging Face Hub. A file whose name ends in ``.jsonl``
or ``.ndjson`` holds a document a line, any other file is one document; both may be compressed by gzip, xz or bzip2.
Text is not decoded: bytes that are not valid UTF-8 are kept unchanged.
"""

import gzip
import hashlib
import json
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ggm_image.data.sources.selection import is_tar, system_or_hidden
from ggm_image.data.sources.tar_stream import Broken, member_files, unpacker
from ggm_image.errors import UserError
from ggm_image.io.files import check_plain
from ggm_image.runtime.streams import say

PIECE = 1 << 20
LONGEST_LINE = 1 << 26  # of JSON lines, which must be in memory as a whole
TEXT_SUFFIXES = (".txt", ".text")
JSON_SUFFIXES = (".jsonl", ".ndjson")
_PACKED = (".xz", ".gz", ".bz2")
_DAMAGE = (tarfile.TarError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError, Broken)


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        name: of its file in the source, with forward slashes; of JSON lines ``FILE/LINE.txt``, lines counted from 1.
        pieces: its bytes in order, to be read before the next document is asked for.
    """

    name: str
    pieces: Iterator[bytes]


@dataclass(frozen=True)
class TextSource:
    """Documents that can be read any number of times, from the first to the last."""

    description: str
    documents: Callable[[], Iterator[Document]]


class Fingerprint:
    """SHA-256 over the names, lengths and bytes of documents in order."""

    def __init__(self) -> None:
        self.documents = self.bytes = 0
        self._digest = hashlib.sha256()

    def add(self, document: Document) -> int:
        """Read one document to its end; its length in bytes."""
        return sum(map(len, self.read(document)))

    def read(self, document: Document) -> Iterator[bytes]:
        """The pieces of one document, which are added as they pass."""
        self._digest.update(document.name.encode("utf-8", "surrogateescape") + b"\0")
        length = 0
        for piece in document.pieces:
            self._digest.update(piece)
            length += len(piece)
            yield piece
        self._digest.update(length.to_bytes(8, "little"))
        self.documents, self.bytes = self.documents + 1, self.bytes + length

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def open_text(source: str | os.PathLike[str], *, text_key: str = "text") -> TextSource:
    """Open a file, a folder, a tar archive or a data set of text.

    Of a folder all files with the suffixes above are read, in the order of their paths; of a tar archive likewise, in
    the order in which they lie there. A file that is given by itself may have any name. What is left out of a folder
    is reported on stderr.

    Args:
        source: the path, or ``hub:`` and a data set, see `ggm_image.data.sources.hub`.
        text_key: the field of each JSON line that holds its text, or the column of a data set.
    """
    if str(source).startswith("hub:"):
        from ggm_image.data.sources.hub import open_hub_text

        return open_hub_text(str(source), text_key=text_key)
    path = Path(source)
    if path.is_dir():
        names = _found(path)
        files = [(name, path / name) for name in names]
        return TextSource(str(path), lambda: _of_files(files, text_key))
    if not path.is_file():
        raise UserError("source of text does not exist", path, "check the path")
    if is_tar(path.name):
        return TextSource(str(path), lambda: _of_tar(path, text_key))
    return TextSource(str(path), lambda: _of_files([(path.name, path)], text_key))


def is_text(name: str) -> bool:
    """Whether a file of this name is read as text where it was not given by itself."""
    return _unpacked(name).lower().endswith((*TEXT_SUFFIXES, *JSON_SUFFIXES))


def _unpacked(name: str) -> str:
    """The name without the suffix of a compression."""
    return name[: -len(PurePosixPath(name).suffix)] if name.lower().endswith(_PACKED) else name


def _found(root: Path) -> list[str]:
    """Files of text below a folder, sorted by their paths."""
    found, left_out, example = [], 0, ""
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not system_or_hidden(name)]
        for file in files:
            name = Path(folder, file).relative_to(root).as_posix()
            if is_text(file) and not system_or_hidden(file):
                found.append(name)
            else:
                left_out, example = left_out + 1, min(example or name, name)
    wanted = ", ".join((*TEXT_SUFFIXES, *JSON_SUFFIXES))
    if not found:
        raise UserError(f"folder must hold files of text ({wanted})", root, "check the path, or give one file")
    if left_out:
        say(f"note: {root}: left out {left_out} files that are not {wanted} (e.g. {example})")
    return sorted(found, key=lambda name: PurePosixPath(name).parts)


def _of_files(files: list[tuple[str, Path]], text_key: str) -> Iterator[Document]:
    for name, path in files:
        with _explained(str(path)):
            check_plain(path)
            with open(path, "rb") as file:
                yield from _documents(name, file, text_key, str(path))


def _of_tar(path: Path, text_key: str) -> Iterator[Document]:
    count = left_out = 0
    with _explained(str(path)):
        for name, file in member_files(str(path), lambda name: True, lambda file: file):
            if not is_text(name):
                left_out += 1
                continue
            count += 1
            yield from _documents(name, file, text_key, f"{path}: {name}")
    if not count:
        wanted = ", ".join((*TEXT_SUFFIXES, *JSON_SUFFIXES))
        raise UserError(
            f"archive must hold files of text ({wanted})", f"{path}: {left_out} others", "check the archive"
        )


class _explained:
    """Turns what decompressors and tarfile raise into a UserError. A class, as generators are closed from outside."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, _DAMAGE):
            why = f"{self.where}: {error or type(error).__name__}"
            raise UserError("file of text is damaged or cut off", why, "copy it again") from error


def _documents(name: str, raw: IO[bytes], text_key: str, where: str) -> Iterator[Document]:
    """The documents of one open file, which is buffered."""
    stream: Any = raw
    if (opener := unpacker(stream.peek(6))) is not None:
        stream, name = opener(stream), _unpacked(name)
    if name.lower().endswith(JSON_SUFFIXES):
        yield from _json_lines(name, stream, text_key, where)
    else:
        yield Document(name, _pieces(stream, where))


def _pieces(stream: Any, where: str) -> Iterator[bytes]:
    with _explained(where):  # they are read outside of the generator that opened the file
        while piece := stream.read(PIECE):
            yield piece


def _json_lines(name: str, stream: Any, text_key: str, where: str) -> Iterator[Document]:
    number = 0
    while line := stream.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            got = f"{where}: line {number}"
            raise UserError(f"a JSON line must have at most {LONGEST_LINE:,} bytes", got, "split it")
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            text = values[text_key]
        except (ValueError, RecursionError) as error:
            raise UserError("line must be JSON", f"{where}: line {number}: {error}", "correct the file") from error
        except (LookupError, TypeError) as error:
            known = ", ".join(map(str, values)) if isinstance(values, dict) else type(values).__name__
            got = f"{where}: line {number} has {known or 'nothing'}"
            raise UserError(f"JSON line must have the field {text_key!r}", got, "name it with text_key") from error
        if not isinstance(text, str):
            got = f"{where}: line {number}: {type(text).__name__}"
            raise UserError(f"the field {text_key!r} must be a string", got, "name another with text_key")
        yield Document(f"{name}/{number:06d}.txt", iter([text.encode("utf-8", "surrogatepass")]))
