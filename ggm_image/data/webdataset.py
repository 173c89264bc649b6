"""WebDataset: tar shards in which the files of one sample lie together and share a name up to the first dot.

``n01440764/000123.jpg`` with ``n01440764/000123.cls``: a picture of any suffix that is read elsewhere, and its class as
a number or a name. Without a ``.cls`` the class is "label", else "class", of the sample's ``.json``; where no sample
has one, there are no classes. Files of other suffixes are passed over.

An archive's name goes to the manifest: of an address without passwords and signatures, of a command all of it, so that
secrets belong in variables of the environment.
"""

import functools
import json
import lzma
import os
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath

from torch import Tensor

from ggm_image.data.archives import expand, is_stream, members, shown
from ggm_image.data.images import open_image
from ggm_image.data.sources import IMAGE_SUFFIXES, is_tar
from ggm_image.data.streams import ClassIndex, PictureStream, Sample
from ggm_image.errors import UserError
from ggm_image.files import check_plain

_PICTURES = frozenset(suffix[1:] for suffix in IMAGE_SUFFIXES)
_PEEKED = 64  # files at the start of an archive that are looked at


def open_webdataset(source: str, class_names: Sequence[str] = ()) -> PictureStream:
    """Open tar shards of WebDataset; nothing of them is read yet.

    Args:
        source: a path, an address for fsspec or ``pipe:COMMAND``, each with braces for several; or a folder of tars.
        class_names: in the order of the labels; empty where these are numbers and their names are "0", "1" ...

    Raises:
        UserError: no such file, or one that is named twice.
    """
    places = _places(source)
    names = _names(places)
    twice = next((name for k, name in enumerate(names) if name in names[:k]), None)
    if twice is not None:
        raise UserError("every archive must be named once", twice, "mend the pattern")
    index = ClassIndex(class_names)

    def read(part: int) -> Iterator[Sample]:
        return _samples(places[part], names[part], index)

    return PictureStream(shown(source), names, list(class_names), read)


def is_webdataset(source: str) -> bool:
    """Whether ``source`` can only be WebDataset: no path, several of them, or local tars with ``.cls`` files."""
    path = Path(source)
    if is_stream(source) or (not path.exists() and len(expand(source)) > 1):
        return True
    if path.is_dir():
        tars = []
        with os.scandir(path) as entries:  # which may be a million pictures
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir() or entry.name.lower().endswith(IMAGE_SUFFIXES):
                    return False
                if is_tar(entry.name):
                    tars.append(entry.path)
        return bool(tars) and _has_cls(min(tars))
    return path.is_file() and is_tar(path.name) and _has_cls(source)


def _has_cls(path: str) -> bool:
    try:
        check_plain(path)
        with tarfile.open(path) as archive:
            return any(_split(member.name)[1] == "cls" for member in islice(archive, _PEEKED))
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, lzma.LZMAError, zlib.error):
        return False  # whoever reads it in earnest says what is wrong with it


def _places(source: str) -> list[str]:
    if is_stream(source):
        return expand(source)
    if Path(source).is_dir():
        return [str(path) for path in sorted(Path(source).iterdir()) if is_tar(path.name) and path.name[0] != "."]
    places = [source] if Path(source).exists() else expand(source)
    for place in places:
        if not Path(place).is_file():
            raise UserError("archive does not exist", place, "check the path and its pattern")
    return places


def _names(places: Sequence[str]) -> list[str]:
    """The file names alone where they tell the archives apart, so that shards that have moved are the same."""
    if any(place.startswith("pipe:") for place in places):
        return list(places)
    short = [PurePosixPath(shown(place)).name for place in places]
    return short if len(set(short)) == len(set(places)) else list(places)


def _split(name: str) -> tuple[str, str]:
    """The key and the suffix, in small letters and without its dot: the file's name at its first dot."""
    folder, _, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return (f"{folder}/{stem}" if folder else stem).removeprefix("./"), suffix.lower()


def _wanted(name: str) -> bool:
    key, suffix = _split(name)
    # `__info__` and the like are about the archive, and hidden files are nobody's.
    parts = PurePosixPath(key).parts
    if not parts or any(part.startswith(".") or (part[:2] == part[-2:] == "__") for part in parts):
        return False
    return suffix in ("cls", "json") or suffix.rpartition(".")[2] in _PICTURES


def _samples(place: str, part: str, index: ClassIndex) -> Iterator[Sample]:
    """The samples of one archive in order."""
    seen: set[str] = set()
    has_classes: bool | None = None
    for key, files in _groups(members(place, _wanted)):
        where = f"{part}: {key}"
        if key in seen:
            raise UserError("sample comes twice", where, "keep its files together, under a key of their own")
        seen.add(key)
        if set(files) == {"json"}:
            continue
        try:
            picture, value = _picture_of(files, where), _class_of(files, where)
            has_classes = value is not None if has_classes is None else has_classes
            if has_classes != (value is not None):
                got = f"{where} has none" if has_classes else f"{where} has one, those before it have not"
                raise UserError("samples must either all have a class or none", got, "mend or remove it")
        except UserError as error:
            yield Sample(key, -1, _raising(error))
            continue
        load = functools.partial(open_image, picture, name=where)
        yield Sample(key, -1 if value is None else index(value, where), load)


def _raising(error: UserError) -> Callable[[], Tensor]:
    """A bad sample: what is wrong with it comes out where its picture would be decoded."""

    def load() -> Tensor:
        raise error

    return load


def _groups(files: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Files of the same key that follow each other."""
    current, group = "", dict[str, bytes]()
    for name, content in files:
        key, suffix = _split(name)
        if group and key != current:
            yield current, group
            group = {}
        if suffix in group:
            raise UserError("file comes twice in an archive", name, "pack it again")
        current = key
        group[suffix] = content
    if group:
        yield current, group


def _picture_of(files: dict[str, bytes], where: str) -> bytes:
    pictures = [suffix for suffix in files if suffix in _PICTURES]
    if len(pictures) != 1:
        raise UserError("sample must have one picture", f"{where}: {', '.join(files)}", "mend or remove it")
    return files[pictures[0]]


def _class_of(files: dict[str, bytes], where: str) -> object:
    """The class as it stands in the sample's files; None without one."""
    if "cls" in files:
        return files["cls"].decode("utf-8", "replace").strip()
    if "json" not in files:
        return None
    try:
        values = json.loads(files["json"])
    except ValueError as error:
        raise UserError("file of a sample is no JSON", f"{where}.json: {error}", "mend it, or add a .cls") from error
    values = values if isinstance(values, dict) else {}
    return next((values[name] for name in ("label", "class") if values.get(name) is not None), None)
