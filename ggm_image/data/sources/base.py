"""Image sources that are read sequentially, in parts; each part becomes one token shard.

A part is an archive or a file of a dataset. Its number of images is only known once it has been read. Nothing is
counted, listed or loaded in advance, so memory does not grow with the number of images.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jaxtyping import UInt8
from torch import Tensor

from ggm_image.data.copies import ORIGINAL, Copy
from ggm_image.data.sources.selection import LeftOut
from ggm_image.errors import UserError
from ggm_image.image.io import open_image

KEY_BYTES = 16


@dataclass
class Sample:
    """One image of a source.

    Attributes:
        name: of a stream, unlike that of every other sample.
        label: index of its class; -1 without one.
        content: the bytes of the image's file; raises UserError where it has none. Called by any thread, once.
        where: what to call the image in an error; the name by default.
        copy: which copy of the image is meant.
    """

    name: str
    label: int
    content: Callable[[], bytes]
    where: str = ""
    copy: Copy = ORIGINAL

    def load(self) -> UInt8[Tensor, "3 h w"]:
        """The decoded original, whichever copy is meant; raises UserError where that fails."""
        return open_image(self.content(), name=self.where or self.name)

    @property
    def key(self) -> bytes:
        """A digest of the name: by it `ggm_image.data.token_cache.verify` finds a sample that came twice."""
        return hashlib.blake2b(self.name.encode("utf-8", "surrogateescape"), digest_size=KEY_BYTES).digest()


@dataclass
class ImageStream:
    """Parts in a fixed order, each with samples in a fixed order.

    Attributes:
        parts: a name for each part, unlike all others.
        class_names: of the labels; empty where they are not known beforehand.
        read: the samples of one part by its number.
        identity: what the names of the parts do not say of where they come from.
        state: of a part by its number: size in bytes and modification time in ns of its file; None where it has none.
        left_out: what has been left out of the parts read so far.
        notes: what was detected, e.g. where its labels stand; empty until it is known.
    """

    description: str
    parts: list[str]
    class_names: list[str]
    read: Callable[[int], Iterator[Sample]]
    identity: str = ""
    state: Callable[[int], tuple[int, int] | None] = lambda part: None
    left_out: LeftOut = field(default_factory=LeftOut)
    notes: list[str] = field(default_factory=list)

    def fingerprint(self) -> str:
        """SHA-256 over the identity and the names of the parts in order."""
        lines = "".join(f"{name}\n" for name in (self.identity, *self.parts))
        return hashlib.sha256(lines.encode("utf-8", "surrogateescape")).hexdigest()


def read_classes(asked: str) -> list[str]:
    """The class names that ``--classes`` means: a file with a name a line, or a number for the names 0, 1, 2 ..."""
    path = Path(asked)
    if not path.is_file():
        if not asked.isdecimal() or not 1 <= int(asked) <= 1_000_000:
            raise UserError("classes must be a file with a name a line, or their number", asked, "check the path")
        return [str(k) for k in range(int(asked))]
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").rstrip().splitlines()]
    except UnicodeDecodeError as error:
        raise UserError("file of class names must be UTF-8", f"{path}: {error}", "save it as UTF-8") from error
    twice = next((name for k, name in enumerate(names) if not name or name in names[:k]), None)
    if not names or twice is not None:
        raise UserError("every class must have a name of its own", f"{path}: {twice!r}", "put one name a line")
    return names


class ClassIndex:
    """Labels as they stand in data sets, to indices.

    Args:
        class_names: in the order of the indices; empty where only numbers can be read.
        numbers_are_indices: an integer is an index even where a class is called so; else it is that class.
    """

    def __init__(self, class_names: Sequence[str], *, numbers_are_indices: bool = False) -> None:
        self.count, self.numbers_are_indices = len(class_names), numbers_are_indices
        self._index = {name: k for k, name in enumerate(class_names)}

    def __call__(self, value: object, where: str) -> int:
        """The index of a class that is given by its number or its name."""
        if isinstance(value, str):
            text = value.strip()
            if text in self._index:
                return self._index[text]
            if not text.isdecimal():
                fix = "check --classes" if self.count else "give the names in order with --classes FILE"
                raise UserError("class is a name that is not known", f"{where}: {text[:80]!r}", fix)
            value = int(text)
        elif isinstance(value, int) and not isinstance(value, bool) and not self.numbers_are_indices:
            value = self._index.get(str(value), value)  # 10 is the class "10", at any index
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < (self.count or 1 << 20):
            last = self.count or 1 << 20
            raise UserError(f"class must lie in [0, {last})", f"{where}: {value!r}", "check the labels and --classes")
        return value
