"""Files of a WebDataset's archive: which belong to one sample, which of them is its image, and what is its label."""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

from ggm_image.data.sources.selection import IMAGE_SUFFIXES, is_image
from ggm_image.errors import UserError

IMAGE_NAMES = frozenset(suffix[1:] for suffix in IMAGE_SUFFIXES)
PEEKED = 64  # files at the start of an archive that are looked at
_FIELDS = ("label", "class")  # of a sample's JSON, by preference


def place_of(key: str) -> str:
    """A label key in words."""
    return f"{key} files" if key.startswith(".") else f"json field {key!r}"


def split(name: str) -> tuple[str, str]:
    """The key and the suffix, in small letters and without its dot: the file's name at its first dot."""
    folder, _, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return (f"{folder}/{stem}" if folder else stem).removeprefix("./"), suffix.lower()


def split_last(name: str) -> tuple[str, str]:
    """As `split`, at the last dot."""
    stem, _, suffix = name.rpartition(".")
    return stem.removeprefix("./"), suffix.lower()


def samples_of(files: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Keys and files of the samples, in order.

    Names end at the first dot. They end at the last where no image is called by the name to the first alone: of files
    with labels of their own, and of all where no image at the start of the archive has a plain suffix. ``a.seg.png``
    beside images like ``b.jpg`` is a mask, and does not take the place of an ``a.jpg`` that is missing.
    """
    coming = iter(files)
    head = list(islice(coming, PEEKED))
    images = [split(name) for name, _ in head if is_image(name)]
    is_plain = any(suffix in IMAGE_NAMES for _, suffix in images)
    # several that share what is before the first dot could be the whole archive: they must not wait for each other
    is_dotted = not is_plain and len({key for key, _ in images}) < len(images)
    for key, group in groups(chain(head, coming), split_last if is_dotted else split):
        if any(suffix in IMAGE_NAMES for suffix in group) or not any(map(is_image, map("a.{}".format, group))):
            yield key, group
        else:
            yield from _dotted(key, group, must_have_labels=is_plain)


def _dotted(key: str, group: dict[str, bytes], *, must_have_labels: bool) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples among files that share a name up to its first dot, but no image of that very name."""
    found: dict[str, dict[str, bytes]] = {}
    for suffix, content in group.items():
        middle, _, last = suffix.rpartition(".")
        found.setdefault(f"{key}.{middle}" if middle else key, {})[last] = content
    with_image = [name for name, files in found.items() if any(suffix in IMAGE_NAMES for suffix in files)]
    if must_have_labels and not all(set(found[name]) - IMAGE_NAMES for name in with_image):
        found = {key: group}
    elif len(with_image) == 1:  # a.v2.jpg with a.cls
        found = {with_image[0]: {**found.pop(key, {}), **found[with_image[0]]}}
    yield from found.items()


def groups(
    files: Iterable[tuple[str, bytes]], split: Callable[[str], tuple[str, str]] = split
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Files of the same key that follow each other."""
    current, group = "", dict[str, bytes]()
    for name, content in files:
        key, suffix = split(name)
        if group and key != current:
            yield current, group
            group = {}
        if suffix in group:
            raise UserError("file comes twice in an archive", name, "pack it again")
        current = key
        group[suffix] = content
    if group:
        yield current, group


def image_of(files: dict[str, bytes], where: str) -> bytes:
    """The file of a sample's only image; UserError where it has none, or several."""
    images = [suffix for suffix in files if suffix in IMAGE_NAMES]
    if len(images) != 1:
        raise UserError("sample must have one image", f"{where}: {', '.join(files)}", "fix or remove it")
    return files[images[0]]


def find_label_key(files: dict[str, bytes], where: str) -> str:
    """Where the class of a sample stands, as a label key; empty without one."""
    if "cls" in files:
        return ".cls"
    values = _json(files, where)
    return next((name for name in _FIELDS if values.get(name) is not None), "")


def label_of(files: dict[str, bytes], key: str, where: str) -> object:
    """The class as it stands in the sample's files; None without one."""
    if not key:
        return None
    if key.startswith("."):
        content = files.get(key[1:])
        return None if content is None else content.decode("utf-8", "replace").strip()
    values: object = _json(files, where)
    if isinstance(values, dict) and key in values:
        return values[key]
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def json_fields(files: dict[str, bytes]) -> tuple[str, ...]:
    """The names of a sample's JSON fields; none where it cannot be read."""
    try:
        return tuple(_json(files, ""))
    except UserError:
        return ()


def _json(files: dict[str, bytes], where: str) -> dict[str, Any]:
    if "json" not in files:
        return {}
    try:
        values = json.loads(files["json"])
    except (ValueError, RecursionError) as error:
        raise UserError("file of a sample is no JSON", f"{where}.json: {error}", "fix it, or add a .cls") from error
    return values if isinstance(values, dict) else {}
