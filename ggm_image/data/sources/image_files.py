"""Sets of images: class folders, flat folders, tar archives of either, and folders of tar shards.

The order is the same on every file system: sorted by class, then by name. Archives are never
extracted to named files. A plain tar is indexed once and read in place. A compressed one has no random access, so it is
first decompressed into an unnamed temporary file on disk. Images are not kept in memory.
"""

import gzip
import hashlib
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import threading
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO

from jaxtyping import UInt8
from torch import Tensor

from ggm_image.data.sources.selection import (
    CIRCULAR,
    EMPTY,
    LeftOut,
    class_order,
    is_image,
    is_tar,
    system_or_hidden,
    why_left_out,
)
from ggm_image.data.sources.tar_stream import safe_members, unpacker
from ggm_image.errors import UserError
from ggm_image.image.io import open_image
from ggm_image.io.files import check_plain, read_plain
from ggm_image.runtime.streams import say

_DAMAGE = (tarfile.TarError, lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError)


@dataclass
class ImageFiles:
    """Files of images with names and labels, in a fixed order; nothing is decoded here.

    Attributes:
        description: where the images came from, for a manifest.
        names: path of every image inside the source, with forward slashes.
        labels: class of every image as an index into ``class_names``; -1 everywhere without classes.
        class_names: sorted names of the class folders; empty for a flat source.
        read: the bytes of one image's file by its number; safe to call from several threads.
        state: size in bytes and modification time in ns of one image's file, or of the archive it lies in, by its
            number; None where unknown.
    """

    description: str
    names: list[str]
    labels: list[int]
    class_names: list[str]
    read: Callable[[int], bytes]
    state: Callable[[int], tuple[int, int] | None] = lambda index: None

    def __len__(self) -> int:
        return len(self.names)

    def fingerprint(self) -> str:
        """SHA-256 over the names and labels in order: two sources that agree give the same cache rows."""
        digest = hashlib.sha256()
        for name, label in zip(self.names, self.labels, strict=True):
            digest.update(f"{name}\0{label}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def order_classes(self, names: Sequence[str]) -> None:
        """Give the classes the indices that they have in ``names``, if these are the same classes in another order."""
        if list(names) != self.class_names and sorted(names) == sorted(self.class_names):
            index = {name: k for k, name in enumerate(names)}
            self.labels = [index[self.class_names[label]] for label in self.labels]
            self.class_names = list(names)


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


def find_images(path: str | os.PathLike[str], *, scratch: str | os.PathLike[str] | None = None) -> ImageFiles:
    """What `ggm_image.data.sources.image_files.open_source` finds, as files; what is left out is reported on stderr."""
    path = Path(path)
    if path.is_dir():
        left_out = LeftOut()
        found = sorted(_walk(path, left_out), key=lambda name: name.parts)
        shards = [path / name for name in found if len(name.parts) == 1 and is_tar(name.name)]
        images = [name for name in found if is_image(name.name)]
        if shards and not images:
            return find_tars(shards, str(path), scratch=scratch, left_out=left_out)
        for name in shards:
            left_out.add(name.suffix.lower(), name.name)
        names, labels, classes = _classify(images, str(path), left_out)
        return ImageFiles(
            str(path), names, labels, classes, lambda k: read_plain(path / names[k]), lambda k: _state(path / names[k])
        )
    if not path.exists():
        raise UserError("source of images does not exist", path, "check the path")
    if is_image(path.name):
        return ImageFiles(str(path), [path.name], [-1], [], lambda _: read_plain(path), lambda _: _state(path))
    return find_tars([path], str(path), scratch=scratch)


def _walk(root: Path, left_out: LeftOut) -> Iterator[PurePosixPath]:
    """Images and top-level archives below ``root``, relative to it. Links are followed, unless to a folder above them.

    Two links to one folder are two folders: only an ancestor would be walked for ever.
    """
    tops = set()
    waiting: list[tuple[Path, PurePosixPath, tuple[str, ...]]] = [(root, PurePosixPath(), (os.path.realpath(root),))]
    while waiting:
        folder, base, above = waiting.pop()
        with os.scandir(folder) as entries:  # a folder that cannot be listed must not pass for an empty one
            for entry in entries:
                name = base / entry.name
                if _is_folder(entry):
                    real = os.path.realpath(entry.path)
                    if reason := system_or_hidden(entry.name) or (CIRCULAR if real in above else ""):
                        left_out.add(reason, name)
                        continue
                    if folder == root:
                        tops.add(entry.name)
                    waiting.append((Path(entry.path), name, (*above, real)))
                elif reason := why_left_out(name):
                    if folder == root and is_tar(entry.name) and not system_or_hidden(entry.name):
                        yield name
                    else:
                        left_out.add(reason, name)
                elif _is_empty(entry):
                    left_out.add(EMPTY, name)
                else:
                    tops.discard(name.parts[0])
                    yield name
    left_out.folders = sorted(tops)


def _state(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_empty(entry: "os.DirEntry[str]") -> bool:
    """Whether it is a regular file without content; a link to nothing is not: reading it says what is wrong."""
    try:
        status = entry.stat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == 0


def _classify(
    images: list[PurePosixPath], where: str, left_out: LeftOut, shown: list[str] | None = None
) -> tuple[list[str], list[int], list[str]]:
    """Names, labels and class names of images in the given order; says what was left out."""
    if not images:
        got = f"{where}: left out {left_out}" if left_out else where
        raise UserError("no images found", got, "give a folder or tar of .jpg, .png, .webp ... files")
    names = shown or [str(name) for name in images]
    at_top = [name for name in images if len(name.parts) == 1]
    if len(at_top) == len(images):
        _report(where, left_out)
        return names, [-1] * len(images), []
    if at_top:
        raise UserError(
            "images must lie either all in class folders or all in none",
            f"{where}: {len(at_top)} outside, e.g. {at_top[0]}, {len(images) - len(at_top)} inside",
            "move one kind elsewhere",
        )
    classes = class_order({name.parts[0] for name in images})
    for name in classes:
        if not name.isprintable():  # bytes that are no UTF-8 read as lone surrogates, which are not printable
            raise UserError("class folders must have printable names", f"{where}: {name!a}", "rename it")
    index = {name: k for k, name in enumerate(classes)}
    _report(where, left_out)
    return names, [index[name.parts[0]] for name in images], classes


def _report(where: str, left_out: LeftOut) -> None:
    if left_out:
        say(f"note: {where}: left out {left_out}")


def find_tars(
    paths: Sequence[Path], where: str, *, scratch: str | os.PathLike[str] | None = None, left_out: LeftOut | None = None
) -> ImageFiles:
    """The images of local tar archives, read at random, as one set; what is left out is reported on stderr."""
    left_out = left_out or LeftOut()
    members: list[tuple[PurePosixPath, str, tuple[IO[bytes], int, int]]] = []
    rooted = True
    short = [path.name for path in paths]
    unique = short if len(set(short)) == len(short) else [str(path) for path in paths]
    states, counts = [_state(path) for path in paths], []
    for path, prefix in zip(paths, unique, strict=True):
        index, has_root = _index_tar(path, scratch, left_out)
        rooted &= has_root
        counts.append(len(index))
        prefix = f"{prefix}/" if len(paths) > 1 else ""
        members += [(name, prefix + str(name), index[name]) for name in sorted(index, key=lambda name: name.parts)]
    images = [name for name, _, _ in members]
    # `tar cf set.tar set` wraps all in `set/`; `tar cf set.tar -C set .` says by its `./` where the top is.
    while not rooted and images and len({name.parts[0] for name in images}) == 1 and len(images[0].parts) > 1:
        images = [PurePosixPath(*name.parts[1:]) for name in images]
    shown = [name for _, name, _ in members] if len(paths) > 1 else None
    names, labels, classes = _classify(images, where, left_out, shown)
    reader = _TarReader([place for _, _, place in members])
    numbers = [number for number, count in enumerate(counts) for _ in range(count)]
    return ImageFiles(where, names, labels, classes, reader, lambda k: states[numbers[k]])


def _index_tar(
    path: Path, scratch: str | os.PathLike[str] | None, left_out: LeftOut
) -> tuple[dict[PurePosixPath, tuple[IO[bytes], int, int]], bool]:
    """Where every image of an archive lies, and whether its names start at ``./``."""
    index: dict[PurePosixPath, tuple[IO[bytes], int, int]] = {}
    everything: dict[str, tuple[IO[bytes], int, int]] = {}
    rooted = False
    file = None
    try:
        file = _open_plain(path, scratch)
        length = os.fstat(file.fileno()).st_size
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for name, member in safe_members(archive, str(path)):
                rooted |= member.name == "." or member.name.startswith("./")
                if member.isreg():
                    everything[member.name] = (file, member.offset_data, member.size)
                    if member.offset_data + member.size > length:
                        raise UserError("archive is cut off", f"{path}: in {member.name}", "fetch or pack it again")
                elif not (member.islnk() and member.linkname in everything):
                    continue
                place = everything[member.linkname if member.islnk() else member.name]
                if reason := why_left_out(name) or (EMPTY if place[2] == 0 else ""):
                    left_out.add(reason, name)
                else:
                    index[name] = place
            # tarfile takes a header that it cannot read for the end, and all behind it would be lost silently
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
            "source is neither a folder, an image nor a whole tar archive", f"{path}: {error}", "check the file"
        ) from error
    return index, rooted


def _open_plain(path: Path, scratch: str | os.PathLike[str] | None) -> IO[bytes]:
    """The archive uncompressed: the file itself, or its content in a nameless temporary file."""
    check_plain(path)
    with open(path, "rb") as file:
        opener = unpacker(file.read(6))
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


class ImageSource(ImageFiles):
    """A set of images in a fixed order; ``source[k]`` decodes one."""

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 h w"]:
        """One image, see `open_image`; raises UserError with its name if that fails."""
        return open_image(self.content(index), name=self.names[index])

    def content(self, index: int) -> bytes:
        """The bytes of one image's file; raises UserError with its name if it cannot be read."""
        try:
            return self.read(index)
        except OSError as error:
            name = self.names[index]
            raise UserError("image cannot be opened", f"{name}: {error.strerror}", "check the source") from error

    def only(self, kept: Sequence[int]) -> "ImageSource":
        """The images of these numbers, in this order."""
        return replace(
            self,
            names=[self.names[k] for k in kept],
            labels=[self.labels[k] for k in kept],
            read=lambda index: self.read(kept[index]),
            state=lambda index: self.state(kept[index]),
        )


def open_source(path: str | os.PathLike[str], *, scratch: str | os.PathLike[str] | None = None) -> ImageSource:
    """Open a folder of images, a tar archive, a folder of such archives, or one image file.

    Images in folders below the top are of the class that the first folder names; images at the top
    itself have no class. A folder that only wraps an archive's content is no class. Hidden files and files
    with other suffixes are ignored. The order is by class, then by name, on every file system.

    Args:
        path: what to read.
        scratch: existing folder for the unpacked copy of a compressed archive; the system's temporary
            folder by default. It is a nameless temporary file, deleted when the process ends.
    """
    return ImageSource(**vars(find_images(path, scratch=scratch)))
