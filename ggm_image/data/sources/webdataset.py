"""WebDataset: tar shards in which the files of one sample lie together and share a name up to the first dot.

``n01440764/000123.jpg`` with ``n01440764/000123.cls``: an image of any suffix that is read elsewhere, and its class as
a number or a name. Without a ``.cls`` the class is the field "label", else "class", of the sample's ``.json``; where no
sample has one, there are no classes. The first sample of an archive decides where its labels are, which is reported;
a label key requires one field or suffix instead. If the first dot yields no image suffix, as in
``holiday.2020.01.jpg``, names end at their last dot.

The manifest stores the name of each archive: addresses without passwords and signatures, but commands in full. So keep
secrets in environment variables.
"""

import contextlib
import functools
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from ggm_image.data.sources.base import ClassIndex, ImageStream, Sample
from ggm_image.data.sources.selection import EMPTY, HIDDEN, LeftOut, class_order, is_image, is_tar, system_or_hidden
from ggm_image.data.sources.tar_stream import expand, is_stream, members, safe_members, shown
from ggm_image.data.sources.webdataset_samples import (
    IMAGE_NAMES,
    PEEKED,
    find_label_key,
    image_of,
    json_fields,
    label_of,
    place_of,
    samples_of,
    split,
)
from ggm_image.errors import UserError
from ggm_image.io.files import check_plain
from ggm_image.runtime.progress import progress

_NAME = re.compile(r"(?![-+]\d+$)[^\ufffd]+")  # of a class: neither a number below 0 nor bytes that are no UTF-8


def open_webdataset(source: str, class_names: Sequence[str] = (), *, label_key: str = "") -> ImageStream:
    """Open tar shards of WebDataset; the first of them is looked at where it lies on this machine.

    Args:
        source: a path, an address for fsspec or ``pipe:COMMAND``, each with braces for several; or a folder of tars.
        class_names: in the order of the labels. Empty where these are numbers, whose names are "0", "1" ..., or where
            the archives lie on this machine: names are then collected from all of them.
        label_key: where the class stands: a field of the ``.json``, with dots for one inside another, or a suffix with
            its dot, e.g. ``.cls`` or ``.txt``. Empty for ``.cls``, else "label", else "class".
    """
    if label_key.startswith("."):
        label_key = label_key.lower()
    places = _places(source)
    # The manifest and errors identify parts by these names, so they must be unique.
    names = _names(places)
    twice = next((name for k, name in enumerate(names) if name in names[:k]), None)
    if twice is not None:
        raise UserError("every archive must be named once", twice, "fix the pattern")
    # Only local archives are opened here: opening a remote one would start a download or run a command.
    is_local = not is_stream(source)
    found = _peek(places[0], label_key) if is_local else None
    reader = _Reader(label_key)
    if found is not None:
        reader.notes.append(found.words)
        # Labels that are names need the full list of names before the first image gets an index.
        if found.value is not None and not class_names and not str(found.value).strip().isdecimal():
            class_names = class_order(_collected(places, label_key or found.key))
    index = ClassIndex(class_names)

    def read(part: int) -> Iterator[Sample]:
        return reader.samples(places[part], names[part], index)

    def state(part: int) -> tuple[int, int] | None:
        if not is_local:
            return None
        status = os.stat(places[part])
        return status.st_size, status.st_mtime_ns

    # Another label key gives other labels, so it is part of the fingerprint.
    identity = f"label key {label_key}" if label_key else ""
    stream = ImageStream(shown(source), names, list(class_names), read, identity, state)
    stream.left_out, stream.notes = reader.left_out, reader.notes
    return stream


def is_webdataset(source: str, label_key: str = "") -> bool:
    """Whether ``source`` is to be read as WebDataset: no path, or tars on this machine whose samples carry labels.

    One tar, a folder of tars and a pattern are treated alike: the first archive decides. A pattern of archives
    without labels is WebDataset too, unless their images lie in class folders.
    """
    if is_stream(source):
        return True
    tars = local_tars(source)
    if not tars:
        return False
    try:
        found = _peek(tars[0], label_key.lower() if label_key.startswith(".") else label_key)
    except FileNotFoundError:
        return True  # which says that it is missing
    is_pattern = not Path(source).exists()
    if found is None:
        return is_pattern  # reading it says what is wrong with it
    return bool(label_key) or found.value is not None or (is_pattern and not found.has_folders)


def local_tars(source: str) -> list[str]:
    """The archives that a path or a pattern means: one tar, those of a folder of tars; empty for anything else."""
    path = Path(source)
    if path.is_dir():
        tars, folders = [], []
        with os.scandir(path) as entries:  # which may be a million images
            for entry in entries:
                if system_or_hidden(entry.name):
                    continue
                if is_image(entry.name):
                    return []
                if is_tar(entry.name):
                    tars.append(entry.path)
                elif entry.is_dir():
                    folders.append(entry.path)
        return [] if tars and any(map(_holds_image, folders)) else sorted(tars)
    if path.exists():
        return [source] if path.is_file() and is_tar(path.name) else []
    places = [] if is_stream(source) else expand(source)
    return places if places != [source] else []


def _holds_image(folder: str) -> bool:
    return any(is_image(name) for _, _, files in os.walk(folder) for name in files if not system_or_hidden(name))


@dataclass(frozen=True)
class _Found:
    """What the first samples of an archive say about its labels.

    Attributes:
        key: where the label stands, as a label key; empty without one.
        value: the label of the first sample; None without one.
    """

    key: str
    value: object
    fields: tuple[str, ...] = ()
    has_folders: bool = False

    @property
    def words(self) -> str:
        if self.value is None:
            fields = f"; its json has {', '.join(self.fields[:12])}" if self.fields else ""
            looked = (
                f"no {place_of(self.key)}" if self.key else "neither .cls files nor a json field 'label' or 'class'"
            )
            return f"no labels: {looked}{fields}; --label-key names another field or suffix"
        return f"labels from the {place_of(self.key)}, the first is {str(self.value)[:40]!r}"


def _peek(path: str, label_key: str) -> _Found | None:
    """The labels at the start of an archive on this machine; None where no image is found there."""
    files: list[tuple[str, bytes]] = []
    wanted, has_folders = _Wanted(label_key), False
    try:
        check_plain(path)
        with tarfile.open(path) as archive:
            for name, member in islice(safe_members(archive, path), 4 * PEEKED):
                if not member.isreg() or not wanted(str(name)):
                    continue
                is_one = is_image(name.name)
                has_folders |= is_one and len(name.parts) > 1
                content = None if is_one else archive.extractfile(member)
                files.append((str(name), content.read() if content else b""))
                if len(files) >= PEEKED:
                    break
        for _, group in samples_of(files):
            if any(suffix in IMAGE_NAMES for suffix in group):
                key = label_key or find_label_key(group, "")
                return _Found(key, label_of(group, key, ""), json_fields(group), has_folders)
    except FileNotFoundError:
        raise
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError, lzma.LZMAError, zlib.error):
        pass  # the actual read reports what is wrong
    return None


def _collected(places: Sequence[str], key: str) -> set[str]:
    """The class names in all archives."""
    found: set[str] = set()
    wanted = _Wanted(key)
    for place in progress(places, total=len(places), unit="archive", label="classes"):
        files = ((name, content) for name, content in members(place, wanted) if not is_image(name))
        for name, content in files:
            suffix = PurePosixPath(name).suffix.lower()
            if suffix == (key if key.startswith(".") else ".json"):
                # what cannot be read is reported with its sample
                with contextlib.suppress(UserError):
                    value = label_of({suffix[1:]: content}, key, name)
                    if value is not None and _NAME.fullmatch(text := str(value).strip()) and text.isprintable():
                        found.add(text)
    return found


class _Wanted:
    """Which files of an archive belong to samples; counts the others.

    Called again with a file of the same archive, as after a break of the network, it counts it once.
    """

    def __init__(self, label_key: str, left_out: LeftOut | None = None) -> None:
        self.label_suffix, self.left_out = label_key if label_key.startswith(".") else "", left_out
        self._seen: set[str] = set()

    def __call__(self, name: str) -> bool:
        path = PurePosixPath(name)
        # the whole path is judged before it is split: of ._IMG.JPG nothing would be left
        reason = next(filter(None, map(system_or_hidden, path.parts)), "")
        if not reason and any(part[:2] == part[-2:] == "__" for part in (*path.parts[:-1], path.stem)):
            reason = HIDDEN  # `__info__` and the like are about the archive
        suffix = path.suffix.lower()
        if not reason and (is_image(name) or suffix in (".cls", ".json", self.label_suffix)):
            return True
        if self.left_out is not None and name not in self._seen:
            self._seen.add(name)
            self.left_out.add(reason or suffix or "no suffix", name)
        return False


def _places(source: str) -> list[str]:
    if is_stream(source):
        return expand(source)
    if Path(source).is_dir():
        return local_tars(source)
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


class _Reader:
    """Reads archives, and notes once where the labels stand."""

    def __init__(self, label_key: str) -> None:
        self.label_key = label_key
        self.left_out, self.notes = LeftOut(), list[str]()

    def samples(self, place: str, part: str, index: ClassIndex) -> Iterator[Sample]:
        """The samples of one archive in order."""
        seen: set[str] = set()
        label_key: str | None = self.label_key or None
        for key, files in samples_of(members(place, _Wanted(self.label_key, self.left_out))):
            where = f"{part}: {key}"
            # A key may end at its first or at its last dot, so it is compared both ways.
            if key in seen or split(f"{key}.")[0] in seen:
                raise UserError("sample comes twice", where, "keep its files together, under a key of their own")
            seen.add(key)
            # Metadata of the archive, not a sample.
            if set(files) == {"json"}:
                continue
            try:
                image = image_of(files, where)
                # The first sample decides where the label is for the whole archive.
                if label_key is None:
                    label_key = find_label_key(files, where)
                    if not self.notes:
                        self.notes.append(
                            _Found(label_key, label_of(files, label_key, where), json_fields(files)).words
                        )
                value = label_of(files, label_key, where)
                self._check(value, label_key, files, where)
            # A bad sample is passed on and raises when it is decoded, where it can be skipped like a broken image.
            except UserError as error:
                yield Sample(key, -1, _raising(error), where)
                continue
            if not image:
                self.left_out.add(EMPTY, where)
                continue
            yield Sample(key, -1 if value is None else index(value, where), functools.partial(bytes, image), where)

    def _check(self, value: object, label_key: str, files: dict[str, bytes], where: str) -> None:
        """Raise UserError where one sample has a label and another has none."""
        if self.label_key and value is None:
            got = f"{where} has no {place_of(label_key)}; its json has {', '.join(json_fields(files)) or 'no fields'}"
            raise UserError("every sample must have the label that --label-key names", got, "check --label-key")
        other = "" if value is not None or self.label_key else find_label_key(files, where)
        if other and not label_key:
            got = f"{where} has one, those before it have not"
            raise UserError("samples must either all have a class or none", got, "fix or remove it")
        if value is None and label_key:
            found = f"has none in the {place_of(label_key)}" if other else "has none"
            raise UserError("samples must either all have a class or none", f"{where} {found}", "fix or remove it")


def _raising(error: UserError) -> Callable[[], bytes]:
    """A bad sample: what is wrong with it comes out where its image would be decoded."""

    def content() -> bytes:
        raise error

    return content
