"""Sets of pictures: class folders, flat folders, tar archives of either, and folders of tar shards.

The order is the same on every file system: sorted by class, then by name. Nothing of an archive is
ever written under a name of its own: a plain tar is indexed once and read in place; a compressed one, which
cannot be read at random, is first unpacked into one nameless temporary file on disk. Memory stays small.
"""

import bz2
import gzip
import hashlib
import lzma
import os
import shutil
import tarfile
import tempfile
import threading
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ggm_image.errors import UserError
from ggm_image.files import check_plain, read_plain

IMAGE_SUFFIXES: tuple[str, ...] = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".bmp",
    ".gif",
    ".tif",
    ".tiff",
)
IMAGE_SUFFIXES += (".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".jp2", ".avif")
TAR_SUFFIXES = (".tar", ".tar.xz", ".txz", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2")
_DAMAGE = (tarfile.TarError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError)
_MAGIC: dict[bytes, Any] = {
    b"\xfd7zXZ\x00": lzma.open,
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
}


@dataclass
class PictureFiles:
    """Files of pictures with names and labels, in a fixed order; nothing is decoded here.

    Attributes:
        description: where the pictures came from, for a manifest.
        names: path of every picture inside the source, with forward slashes.
        labels: class of every picture as an index into ``class_names``; -1 everywhere without classes.
        class_names: sorted names of the class folders; empty for a flat source.
        read: the bytes of one picture's file by its number; safe to call from several threads.
    """

    description: str
    names: list[str]
    labels: list[int]
    class_names: list[str]
    read: Callable[[int], bytes]

    def __len__(self) -> int:
        return len(self.names)

    def fingerprint(self) -> str:
        """SHA-256 over the names and labels in order: two sources that agree give the same cache rows."""
        digest = hashlib.sha256()
        for name, label in zip(self.names, self.labels, strict=True):
            digest.update(f"{name}\0{label}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


class _TarReader:
    """Members of open archives by (archive, offset, size)."""

    def __init__(self, places: list[tuple[IO[bytes], int, int]]) -> None:
        self.places = places
        self._lock = threading.Lock()
        for file in {id(place[0]): place[0] for place in places}.values():
            weakref.finalize(self, file.close)

    def __call__(self, index: int) -> bytes:
        file, offset, size = self.places[index]
        if hasattr(os, "pread"):
            return os.pread(file.fileno(), size, offset)
        with self._lock:
            file.seek(offset)
            return file.read(size)


def find_pictures(path: str | os.PathLike[str], *, scratch: str | os.PathLike[str] | None = None) -> PictureFiles:
    """What `ggm_image.data.images.open_source` finds, as files."""
    path = Path(path)
    if path.is_dir():
        found = sorted(_walk(path), key=lambda name: name.parts)
        shards = [path / name for name in found if len(name.parts) == 1 and is_tar(name.name)]
        pictures = [name for name in found if name.suffix.lower() in IMAGE_SUFFIXES]
        if shards and not pictures:
            return _open_tars(shards, str(path), scratch)
        names, labels, classes = _classify(pictures, str(path))
        return PictureFiles(str(path), names, labels, classes, lambda k: read_plain(path / names[k]))
    if not path.exists():
        raise UserError("source of pictures does not exist", path, "check the path")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return PictureFiles(str(path), [path.name], [-1], [], lambda _: read_plain(path))
    return _open_tars([path], str(path), scratch)


def is_tar(name: str) -> bool:
    """Whether a file of this name is a tar archive, packed or not."""
    return name.lower().endswith(TAR_SUFFIXES)


def _walk(root: Path) -> Iterator[PurePosixPath]:
    """Files below ``root``, relative to it; links are followed, circles of them and hidden names are not."""

    def fail(error: OSError) -> None:
        raise error  # a folder that cannot be listed must not pass for an empty one

    seen = set()
    for folder, subfolders, files in os.walk(root, followlinks=True, onerror=fail):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        base = PurePosixPath(Path(folder).relative_to(root).as_posix())
        for name in files:
            if not name.startswith("."):
                yield base / name


def _classify(
    pictures: list[PurePosixPath], where: str, shown: list[str] | None = None
) -> tuple[list[str], list[int], list[str]]:
    """Names, labels and class names of pictures in the given order."""
    if not pictures:
        raise UserError("no pictures found", where, "give a folder or tar of .jpg, .png, .webp ... files")
    names = shown or [str(name) for name in pictures]
    at_top = [name for name in pictures if len(name.parts) == 1]
    if len(at_top) == len(pictures):
        return names, [-1] * len(pictures), []
    if at_top:
        raise UserError(
            "pictures must lie either all in class folders or all in none",
            f"{where}: {len(at_top)} outside, e.g. {at_top[0]}, {len(pictures) - len(at_top)} inside",
            "move one kind elsewhere",
        )
    classes = sorted({name.parts[0] for name in pictures})
    for name in classes:
        if not name.isprintable():  # bytes that are no UTF-8 read as lone surrogates, which are not printable
            raise UserError("class folders must have printable names", f"{where}: {name!a}", "rename it")
    index = {name: k for k, name in enumerate(classes)}
    return names, [index[name.parts[0]] for name in pictures], classes


def _open_tars(paths: list[Path], where: str, scratch: str | os.PathLike[str] | None) -> PictureFiles:
    members: list[tuple[PurePosixPath, str, tuple[IO[bytes], int, int]]] = []
    rooted = True
    for path in paths:
        index, has_root = _index_tar(path, scratch)
        rooted &= has_root
        prefix = f"{path.name}/" if len(paths) > 1 else ""
        members += [(name, prefix + str(name), index[name]) for name in sorted(index, key=lambda name: name.parts)]
    pictures = [name for name, _, _ in members]
    # `tar cf set.tar set` wraps all in `set/`; `tar cf set.tar -C set .` says by its `./` where the top is.
    while not rooted and pictures and len({name.parts[0] for name in pictures}) == 1 and len(pictures[0].parts) > 1:
        pictures = [PurePosixPath(*name.parts[1:]) for name in pictures]
    shown = [name for _, name, _ in members] if len(paths) > 1 else None
    names, labels, classes = _classify(pictures, where, shown)
    return PictureFiles(where, names, labels, classes, _TarReader([place for _, _, place in members]))


def _index_tar(
    path: Path, scratch: str | os.PathLike[str] | None
) -> tuple[dict[PurePosixPath, tuple[IO[bytes], int, int]], bool]:
    """Where every picture of an archive lies, and whether its names start at ``./``."""
    index: dict[PurePosixPath, tuple[IO[bytes], int, int]] = {}
    everything: dict[str, tuple[IO[bytes], int, int]] = {}
    rooted = False
    file = None
    try:
        file = _open_plain(path, scratch)
        length = os.fstat(file.fileno()).st_size
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                rooted |= member.name == "." or member.name.startswith("./")
                name = PurePosixPath(member.name)
                if name.is_absolute() or ".." in name.parts:
                    raise UserError("archive has an unsafe name", f"{path}: {member.name}", "pack it again")
                if member.isreg():
                    everything[member.name] = (file, member.offset_data, member.size)
                    if member.offset_data + member.size > length:
                        raise UserError("archive is cut off", f"{path}: in {member.name}", "fetch or pack it again")
                elif not (member.islnk() and member.linkname in everything):
                    continue
                hidden = any(part.startswith(".") for part in name.parts)
                if name.suffix.lower() in IMAGE_SUFFIXES and not hidden:
                    index[name] = everything[member.linkname if member.islnk() else member.name]
            # tarfile takes a header that it cannot read for the end, and all behind it would be lost without a word
            file.seek(archive.offset)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError(f"damaged at byte {archive.offset}")
    except BaseException as error:
        if file is not None:
            file.close()
        if isinstance(error, UserError) or not isinstance(error, (*_DAMAGE, ValueError)):
            raise
        if zipfile.is_zipfile(path):
            fix = "unpack it and give the folder, or pack the files as a tar"
            raise UserError("zip archives cannot be read", path, fix) from error
        raise UserError(
            "source is neither a folder, a picture nor a whole tar archive",
            f"{path}: {error}",
            "check the file",
        ) from error
    return index, rooted


def _open_plain(path: Path, scratch: str | os.PathLike[str] | None) -> IO[bytes]:
    """The archive uncompressed: the file itself, or its content in a nameless temporary file."""
    check_plain(path)
    with open(path, "rb") as file:
        head = file.read(6)
    opener = next((opener for magic, opener in _MAGIC.items() if head.startswith(magic)), None)
    if opener is None:
        return open(path, "rb")
    spool = tempfile.TemporaryFile(dir=scratch)  # noqa: SIM115
    try:
        with opener(path, "rb") as packed:
            shutil.copyfileobj(packed, spool, 1 << 20)
        spool.flush()
        spool.seek(0)
    except BaseException:
        spool.close()
        raise
    return spool
