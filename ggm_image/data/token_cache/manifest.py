"""The manifest of a token cache, and the state of its shards.

While a cache is being written, each finished shard has a small file ``tokens-00003.json`` beside it with its count and
SHA-256. The last process to finish merges these files into ``manifest.json`` and removes them.
"""

import json
import os
from dataclasses import asdict, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field, InstanceOf
from typing_extensions import NotRequired, TypedDict

from ggm_image.data.copies import Copy, copies_of, most_shifts
from ggm_image.errors import UserError
from ggm_image.io.files import first_difference
from ggm_image.validation import NaturalInt, PositiveInt, Whole, build, checked

FORMAT_VERSION = 1
SHARD_SIZE = 10_000
MOST_SHARDS = 1_000_000
_PROGRESS_FIELDS = ("count", "complete", "shards", "states", "made_with")
_Side = Annotated[Whole, Field(gt=0, le=1 << 16)]


class Skipped(TypedDict):
    """An image that could not be read."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    item: NaturalInt
    name: NotRequired[InstanceOf[str]]
    why: NotRequired[InstanceOf[str]]


class Shard(TypedDict):
    """What a manifest says of a finished shard."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    file: str
    count: NaturalInt
    sha256: str
    skipped: list[Skipped]
    part: NotRequired[InstanceOf[str]]
    items: NotRequired[NaturalInt]
    classes: NotRequired[Whole]
    state: NotRequired[str]


@checked(fix="encode with other settings", extra="ignore")
class Manifest:
    """What a token cache says of itself.

    Attributes:
        tokenizer_sha256: SHA-256 of its weights.
        codebook_size: V; every token lies in [0, V).
        grid: rows and columns of tokens.
        image_size: side in pixels of the images that were encoded; 0 for text, whose grid is 1 x length.
        class_names: one name a label; empty where every label is -1.
        preprocessing: what was done to the images before encoding, ``flip`` included, and where it is not 0,
            ``shifts``, the number of shifted copies of each.
        source: ``path``, number of ``images`` and ``sha256`` of their names and labels; of a stream, the ``sha256`` of
            the names of its parts, and how many ``classes`` it was told, 0 where they are counted at the end.
        tokenizer_source: the name or path by which the tokenizer was loaded.
        shard_size: source items a shard.
        items: source items in all, each copy of an image one; ``count`` is less where images were skipped. Of a
            stream, 0 until the end.
        parts: of a stream: what is read from front to back, a shard each; shard ``c * parts + k`` holds copy ``c`` of
            part k. 0 for images that are read at random.
        made_with: versions of the libraries that decoded and encoded.
        count: rows in the finished shards.
        complete: whether all shards are there.
        states: of each finished shard a digest of the sizes and modification times of the files that it was made of,
            see `ggm_image.data.token_cache.provenance`; empty where there are none. Not part of ``shards``, because the
            same images give the same shards, regardless of where they are stored.
        modality: ``image`` or ``text``.
        shards: ``file``, ``count``, ``sha256`` and ``skipped`` of each finished shard, by shard number; of a stream
            also the ``part`` it was made of, how many ``items`` that holds, and its highest label plus 1, ``classes``.
    """

    tokenizer_name: str
    tokenizer_sha256: str
    codebook_size: Annotated[Whole, Field(gt=0, le=1 << 16)]
    grid: tuple[_Side, _Side]
    image_size: Whole
    class_names: list[str]
    preprocessing: dict[str, Any]
    source: dict[str, Any]
    items: Annotated[Whole, Field(ge=0, lt=1 << 40)]
    tokenizer_source: InstanceOf[str] = ""  # a path, which may be no UTF-8
    shard_size: PositiveInt = SHARD_SIZE
    made_with: dict[str, Any] = field(default_factory=dict)
    parts: Annotated[Whole, Field(ge=0, lt=1 << 32)] = 0
    count: NaturalInt = 0
    complete: bool = False
    shards: list[Shard] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    modality: str = "image"
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.shards_in_all > MOST_SHARDS:
            fix = "use fewer parts, or a larger shard size"
            raise UserError(f"a token cache must have at most {MOST_SHARDS:,} shards", self.shards_in_all, fix)
        if contradiction := self._contradiction():
            raise UserError("entries of a token cache must agree", contradiction, "encode again")

    def _contradiction(self) -> str:
        """The first that entries do not have in common as they should; empty where there is none."""
        names, shifts = self.class_names, self.preprocessing.get("shifts", 0)
        if not all(map(str.isprintable, names)) or len(set(names)) < len(names):
            return f"class_names are {names!r:.100}"
        if type(shifts) is not int or not 0 <= shifts <= most_shifts(self.image_size):
            return f"preprocessing.shifts is {shifts!r:.100} for images of {self.image_size} pixels"
        if 0 < self.items < (copies := len(self.copies)):
            return f"items are {self.items}, fewer than the {copies} copies of an image"
        for number, shard in enumerate(self.shards):
            skipped, most = shard["skipped"], shard.get("items", -1) if self.parts else self.items
            if shard["count"] > most - len(skipped) or any(entry["item"] >= most for entry in skipped):
                return f"shard {number} has {shard['count']} of {most} items and skipped {skipped!r:.100}"
        if self.count != (total := sum(shard["count"] for shard in self.shards)):
            return f"count is {self.count}, the shards hold {total}"
        return ""

    @classmethod
    def read(cls, folder: str | Path) -> "Manifest":
        """The manifest of a cache, finished or not."""
        path = Path(folder) / "manifest.json"
        remedy = "make one with ggm-image encode SRC OUT --tokenizer NAME"
        if not path.is_file():
            raise UserError("not a token cache: it has no manifest.json", folder, remedy)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise UserError("manifest cannot be read", f"{path}: {error}", remedy) from error
        version = values.get("format_version") if isinstance(values, dict) else FORMAT_VERSION
        if version != FORMAT_VERSION:
            raise UserError(f"token cache must have format version {FORMAT_VERSION}", version, "encode it again")
        try:
            return build(cls, values)
        except UserError as error:
            got = f"{path}: {error.what}, got {error.got!r:.100}"
            raise UserError("manifest is not that of a token cache", got, remedy) from error

    def request(self) -> dict[str, Any]:
        """What was asked for, without how far the work has got."""
        left_out = {*_PROGRESS_FIELDS, "tokenizer_source"}
        if self.parts:
            left_out.add("items")
            if not self.source.get("classes"):
                left_out.add("class_names")
        values = {k: v for k, v in asdict(self).items() if k not in left_out}
        values["source"] = {k: v for k, v in self.source.items() if k != "path"}
        return json.loads(json.dumps(values))

    def difference(self, before: "Manifest") -> str:
        """The first entry in which the request differs from that of ``before``, in words; empty where none does."""
        ours, theirs = self.request(), before.request()
        found = first_difference({key: theirs.get(key) for key in ours}, ours)
        if found is None:
            return ""
        (key, was, now), why = found, ""
        if key == "preprocessing.version":
            why = "an earlier version encoded it, which read some rotated images on their side: "
        return f"{why}{key} is {was!r:.200}, now {now!r:.200}"

    @property
    def copies(self) -> tuple[Copy, ...]:
        """The copies of each image: all images as the first of these, then all as the next."""
        return copies_of(bool(self.preprocessing.get("flip")), self.preprocessing.get("shifts", 0))

    @property
    def images(self) -> int:
        """How many images were encoded, each once however many copies it has, skipped ones included."""
        return self.items // len(self.copies)

    @property
    def shards_in_all(self) -> int:
        """How many shards the finished cache has."""
        return self.parts * len(self.copies) if self.parts else -(-self.items // self.shard_size)

    def items_of(self, shard: int) -> range:
        """The items of one shard of a set that is read at random."""
        start = shard * self.shard_size
        return range(start, min(start + self.shard_size, self.items))

    def items_by_shard(self) -> list[range]:
        """The items of every shard that is listed, numbered through."""
        if not self.parts:
            return [self.items_of(shard) for shard in range(len(self.shards))]
        ends = np.cumsum([0, *(shard["items"] for shard in self.shards)]).tolist()
        return [range(start, end) for start, end in pairwise(ends)]

    def skipped(self) -> list[Skipped]:
        """The images that could not be read: ``item``, ``name`` and ``why`` of each."""
        if not self.parts:
            return [entry for shard in self.shards for entry in shard["skipped"]]
        # What is noted of a part counts from its start: those before it were not known then.
        return [
            {**entry, "item": items.start + entry["item"]}
            for items, shard in zip(self.items_by_shard(), self.shards, strict=True)
            for entry in shard["skipped"]
        ]

    def item_of_row(self) -> np.ndarray:
        """The source item (count,) of every row: the row's own number unless images were skipped."""
        end = max((items.stop for items in self.items_by_shard()), default=0)
        return np.delete(np.arange(end), [entry["item"] for entry in self.skipped()])

    def image_of_row(self) -> np.ndarray:
        """The image (count,) in [0, images) of every row: the copies of an image have the same."""
        return self.item_of_row() % self.images


def shard_file(shard: int) -> str:
    """Name of a shard's tokens."""
    return f"tokens-{shard:05d}.safetensors"


def note_file(shard: int) -> str:
    """Name of what is noted of a finished shard until the whole cache is."""
    return f"tokens-{shard:05d}.json"


def state_of_shard(folder: Path, manifest: Manifest, shard: int) -> str:
    """What is known of the sizes and times of the files that a finished shard was made of; empty where nothing is."""
    entry = finished_shard(folder, manifest, shard)
    if entry is not None and "state" in entry:
        return str(entry["state"])
    return manifest.states[shard] if shard < len(manifest.states) else ""


def finished_shards(folder: Path, manifest: Manifest) -> list[Shard | None]:
    """What is known of every shard: its future entry of the manifest, or None while it is not finished."""
    names = set(os.listdir(folder))
    return [_entry(folder, manifest, shard, names) for shard in range(manifest.shards_in_all)]


def shards_left(folder: str | Path) -> int:
    """How many shards of the cache in ``folder`` are still to be written, by whichever process."""
    manifest = Manifest.read(folder)
    return 0 if manifest.complete else finished_shards(Path(folder), manifest).count(None)


def finished_shard(folder: Path, manifest: Manifest, shard: int) -> Shard | None:
    """The same of one shard alone."""
    names = {name for name in (shard_file(shard), note_file(shard)) if (folder / name).is_file()}
    return _entry(folder, manifest, shard, names)


def _entry(folder: Path, manifest: Manifest, shard: int, names: set[str]) -> Shard | None:
    if shard_file(shard) not in names:
        return None
    if note_file(shard) in names:
        try:
            return json.loads((folder / note_file(shard)).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
    # A cache that is complete, or was begun before there were such notes.
    return manifest.shards[shard] if shard < len(manifest.shards) else None
