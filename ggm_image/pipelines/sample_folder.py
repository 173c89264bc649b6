"""A folder of samples, filled by one process or by several that share nothing but the folder.

``000000.png ...`` and, once all of them exist, ``manifest.json``. Until then the same manifest is called
``manifest.partial``: it says what the images are of, so that two requests are never mixed. An image depends on its
number alone, and files are written atomically. So a killed process resumes with the same command, two processes with
the same share do no harm, and the process that finds every image present completes the manifest.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Int
from PIL import Image
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.image.io import to_pil
from ggm_image.io.files import first_difference, remove_temporaries, write_json, write_together
from ggm_image.io.image_formats import IMAGE_SUFFIXES, LOSSLESS_PNG, PNG, Encoding, marked_image
from ggm_image.io.marks import read_mark
from ggm_image.io.outputs import MANIFEST, PARTIAL, number_of, numbered
from ggm_image.pipelines.classes import turns
from ggm_image.pipelines.guide import Guide
from ggm_image.pipelines.image import Model
from ggm_image.runtime.progress import progress_bar
from ggm_image.runtime.streams import say
from ggm_image.sampler import Callback
from ggm_image.sampler.settings import Settings

COMMAND = "sample"
__all__ = ["SampleFolder", "Sampled", "numbered", "sample_to_folder"]


@dataclass(frozen=True)
class Sampled:
    """What a process has done for a folder.

    Attributes:
        missing: images that other processes have still to sample; 0 for a complete folder.
    """

    sampled: int
    missing: int


def sample_to_folder(
    model: Model,
    out: Path,
    n: int,
    *,
    classes: str | int | Sequence[str | int] | None = None,
    seed: int = 0,
    settings: Settings,
    share: tuple[int, int] = (0, 1),
    callback: Callback | None = None,
    overwrite: bool = False,
    encoding: Encoding = LOSSLESS_PNG,
    guide: Guide | None = None,
) -> Sampled:
    """Sample this process's share of images ``0 ... n - 1`` of a seed into a folder, except those already there.

    Process r of w takes the batches r, r + w, r + 2 w ... of the model's own size: an image is computed by the same
    kernels, at the same place in its batch, for any number of processes.

    Args:
        out: the folder; it may hold images of the same request, or of the same with a smaller ``n``.
        n: how many images the folder will hold.
        classes: a class for all, or several that take turns: class k mod their number for image k. All of the model's
            by default; with a guide, no class.
        share: number of this process, and how many there are.
        callback: see `Model.sample_tokens`; where it is given, the first batch is sampled even if it is there.
        overwrite: replace other images; for one process.
        guide: what the images follow, see `Model.encode_guide`.
    """
    rank, processes = share
    asked = [classes] if isinstance(classes, str | int) else classes
    labels = None if asked is None else turns(asked, range(n))
    manifest = model.manifest(n, classes=labels, seed=seed, settings=settings, guide=guide) | encoding.described
    folder = SampleFolder(out, manifest, encoding)
    if overwrite and (removed := folder.clear()):
        say(f"removed {removed} images of another request: {out}")
    if folder.claim() and callback is None:
        return Sampled(0, 0)
    size, sampled = model.kernel_batch, 0
    blocks = [range(start, min(start + size, n)) for start in range(rank * size, n, processes * size)]
    with progress_bar(total=sum(map(len, blocks)), unit="img", label="sample") as advance:
        for rows in blocks:
            if not all(map(folder.holds, rows)) or (callback and rows.start == 0):
                tokens = sample_rows(model, rows, asked, guide=guide, seed=seed, settings=settings, callback=callback)
                for k, image in zip(rows, model.decode(tokens), strict=True):
                    if not folder.holds(k):
                        folder.write(k, to_pil(image))
                sampled += len(rows)
            advance(len(rows))
    return Sampled(sampled, folder.finish())


def sample_rows(
    model: Model, rows: range, asked: Sequence[str | int] | None, *, guide: Guide | None = None, **options: Any
) -> Int[Tensor, "n h w"]:
    """Token grids of images ``rows``, whose classes take turns.

    Args:
        asked: the classes; None for all of the model's, or for no class where there is a guide.
        **options: of `Model.sample_tokens`.
    """
    if guide is not None and asked is None:
        labels = [model.null_label] * len(rows)
    else:
        labels = model.labels(len(rows), None if asked is None else turns(asked, rows), rows.start)
    observation = None if guide is None else guide.observation.expand(len(rows), -1, -1)
    return model.sample_tokens(labels, first=rows.start, observation=observation, **options)


@dataclass(frozen=True)
class SampleFolder:
    """The files of such a folder.

    Attributes:
        manifest: all that its images depend on, with their number ``count`` and ``classes``, a name each or None.
    """

    path: Path
    manifest: dict[str, Any]
    encoding: Encoding = LOSSLESS_PNG

    def clear(self) -> int:
        """Make room for this request, unless the folder is of it already; files that it does not need stay.

        What goes: the manifest, the images that will be replaced, and further images that `sample` wrote.
        """
        if not self.path.is_dir():
            return 0
        try:
            before = self._read(PARTIAL) or self._read(MANIFEST)
        except UserError:
            before = {}
        if before and not _difference(before, self.manifest):
            return 0
        removed = 0
        for name in os.listdir(self.path):
            k, path = number_of(name, IMAGE_SUFFIXES), self.path / name
            if k is None or not path.is_file():
                continue
            replaced = k < self.manifest["count"] and path.suffix == self.encoding.suffix
            if replaced or _is_ours(path):
                path.unlink()
                removed += 1
        (self.path / MANIFEST).unlink(missing_ok=True)
        write_json(self.path / PARTIAL, self.manifest)
        return removed

    def claim(self) -> bool:
        """Reserve the folder for this request; True if it is complete already."""
        self.path.mkdir(parents=True, exist_ok=True)
        # Look for images first: another process may start meanwhile, and it writes its manifest before any image.
        images = any(number_of(name, (self.encoding.suffix,)) is not None for name in os.listdir(self.path))
        begun = self._read(PARTIAL)
        before = begun or self._read(MANIFEST)
        if before is None and images:
            fix = "choose another folder, or add --overwrite"
            raise UserError("folder holds images and no manifest", self.path, fix)
        if before is not None and (difference := _difference(before, self.manifest)):
            fix = "choose another folder, or add --overwrite"
            raise UserError("folder holds other images", f"{self.path}: {difference}", fix)
        if before != self.manifest:
            write_together(self.path / PARTIAL, lambda path: write_json(path, self.manifest))
        elif begun is None:
            if not self._missing():
                remove_temporaries(self.path)
                return True
            _rename(self.path / MANIFEST, self.path / PARTIAL)
        if self._read(MANIFEST) not in (None, self.manifest):  # of fewer images
            (self.path / MANIFEST).unlink(missing_ok=True)
        return False

    def holds(self, k: int) -> bool:
        """Whether image ``k`` exists and is intact by its own checksums, or by our mark where the format has none."""
        if self.encoding.format is not PNG:
            return _is_ours(self._file(k))
        try:
            with Image.open(self._file(k)) as image:
                image.verify()
        except (OSError, SyntaxError, ValueError):
            return False
        return True

    def write(self, k: int, image: Image.Image) -> None:
        """Write image ``k``."""
        content = marked_image(image, COMMAND, encoding=self.encoding)
        write_together(self._file(k), lambda path: path.write_bytes(content))

    def _file(self, k: int) -> Path:
        return self.path / numbered(k, self.encoding.suffix)

    def finish(self) -> int:
        """How many images are missing; if none, the manifest is completed."""
        if missing := self._missing():
            return missing
        if self._read(PARTIAL) == self.manifest:
            _rename(self.path / PARTIAL, self.path / MANIFEST)
        if self._read(MANIFEST) != self.manifest:
            fix = "give each request a folder of its own"
            raise UserError("another process is filling the folder with other images", self.path, fix)
        # Temporary files left now are of images that exist already.
        remove_temporaries(self.path)
        return 0

    def _missing(self) -> int:
        count: int = self.manifest["count"]
        names = set(os.listdir(self.path))
        if missing := sum(self._file(k).name not in names for k in range(count)):
            return missing
        return sum(not self.holds(k) for k in range(count))

    def _read(self, name: str) -> dict[str, Any] | None:
        try:
            content = json.loads((self.path / name).read_bytes())
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError):
            content = None
        if not isinstance(content, dict):
            raise UserError("manifest cannot be read", self.path / name, "choose another folder, or remove it")
        return content


def _is_ours(path: Path) -> bool:
    """Whether `sample` wrote a file that was not changed since."""
    mark = read_mark(path)
    return mark is not None and mark.get("command") == COMMAND and mark["intact"]


def _rename(before: Path, after: Path) -> None:
    """Rename, unless another process has done so."""
    try:
        os.replace(before, after)
    except FileNotFoundError:
        if not after.is_file():
            raise


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """The first entry in which two requests differ, in words; empty if ``now`` is ``before`` or extends it."""
    before, now = {"format": PNG.name, **before}, {"format": PNG.name, **now}  # which manifests do not say
    count = before.get("count")
    if isinstance(count, int) and count < now["count"]:
        classes = now["classes"]
        now = {**now, "count": count, "classes": classes if classes is None else classes[:count]}
    if (found := first_difference(before, now)) is None:
        return ""
    key, old, new = found
    return f"they differ in {key}" if isinstance(old, list) and isinstance(new, list) else f"{key} is {old}, now {new}"
