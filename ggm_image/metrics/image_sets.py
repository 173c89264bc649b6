"""The two sides of a comparison: image files, a token cache, or a model that is sampled as its images are needed.

A side is a fixed sequence of images with classes. Its `ImageSet.identity` is everything that the images depend on,
so that features which were saved for it are found again, and features of anything else are not taken for them.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import UInt8
from torch import Tensor

from ggm_image.data.decode import check_tokenizer, decode_batch, tokenizer_of
from ggm_image.data.sources.image_files import ImageSource, open_source
from ggm_image.data.sources.prefetch import default_workers
from ggm_image.data.token_cache.reader import TokenCache
from ggm_image.errors import UserError
from ggm_image.io.files import read_json_table, sha256_file
from ggm_image.io.image_formats import IMAGE_SUFFIXES
from ggm_image.io.outputs import number_of
from ggm_image.metrics.feature_file import RECORD, Features, are_features, open_features
from ggm_image.pipelines.classes import turns
from ggm_image.pipelines.image import Model
from ggm_image.pipelines.load import load_model
from ggm_image.pipelines.model_folder import CONFIG, WEIGHTS, find_model
from ggm_image.runtime.progress import progress
from ggm_image.sampler.settings import Settings
from ggm_image.tokenizers.base import Tokenizer
from ggm_image.tokenizers.registry import load_image_tokenizer

MODEL_PREFIX = "model:"
DECODE_BATCH = 64
"""Token grids a pass, as `ggm_image.data.decode.decode` has it: the same images as in the folder that it writes."""
T = TypeVar("T")


class ImageSet(ABC):
    """Images in a fixed order.

    Attributes:
        labels: class of every image, an index into ``class_names``; -1 where none is known.
        block: images that are best asked for together.
    """

    block = 1
    description: str
    labels: list[int]
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def name(self, index: int) -> str:
        """What to call an image in an error."""
        return f"image {index} of {self.description}"

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """All that an image of a number and its class depend on, for JSON; not how many images there are."""

    @abstractmethod
    def map(self, function: Callable[[UInt8[Tensor, "3 h w"]], T], rows: range, pool: Executor) -> list[T]:
        """``function`` of every image in ``rows``, by the threads of ``pool``."""


class ImageFileSet(ImageSet):
    """Files of images. Classes are the class folders, or what ``manifest.json`` of `ggm-image sample` says.

    Attributes:
        skipped: names of the images that `leave_out_bad` has left out.
    """

    def __init__(self, source: ImageSource) -> None:
        self.skipped: list[str] = []
        self.source, self.description = source, source.description
        self.labels, self.class_names = source.labels, source.class_names
        self.manifest = _manifest(Path(source.description))
        asked = (self.manifest or {}).get("classes")
        if not self.class_names and isinstance(asked, list) and len(asked) == len(source):
            self.class_names = sorted({str(name) for name in asked})
            index = {name: k for k, name in enumerate(self.class_names)}
            self.labels = [index[str(asked[k])] for k in _numbers(source.names)]

    def leave_out_bad(self, workers: int | None = None) -> list[str]:
        """Leave out the images that cannot be read, for which every image is decoded once."""

        def why(index: int) -> str:
            try:
                self.source[index]
            except UserError as error:
                return str(error)
            return ""

        total = len(self.source)
        with ThreadPoolExecutor(workers or default_workers(), thread_name_prefix="decode") as pool:
            reasons = list(progress(pool.map(why, range(total)), total=total, unit="img", label="check"))
        if any(reasons):
            good = [k for k, reason in enumerate(reasons) if not reason]
            by_manifest = self.labels is not self.source.labels
            labels = [self.labels[k] for k in good]
            self.skipped += [self.source.names[k] for k, reason in enumerate(reasons) if reason]
            self.source = self.source.only(good)
            self.labels = labels if by_manifest else self.source.labels
        return list(filter(None, reasons))

    def name(self, index: int) -> str:
        return self.source.names[index]

    def identity(self) -> dict[str, Any]:
        found = {"names_sha256": self.source.fingerprint(), "content_sha256": _content_sha256(self.source)}
        if self.labels is not self.source.labels and self.manifest is not None:
            found["manifest_sha256"] = self.manifest["sha256"]
            if (numbers := _numbers(self.source.names)) != sorted(numbers):
                found["classes"] = "by number"  # features saved by earlier versions have the classes of other images
        return {"kind": "pictures", **found}  # the word in features that earlier versions saved

    def map(self, function: Callable[[UInt8[Tensor, "3 h w"]], T], rows: range, pool: Executor) -> list[T]:
        return list(pool.map(lambda index: function(self.source[index]), rows))


class _GeneratedSet(ImageSet):
    """Images that are computed when they are needed, ``block`` at a time; the last block is kept."""

    _held: tuple[int, Tensor] | None = None

    @abstractmethod
    def _make(self, rows: range) -> UInt8[Tensor, "n 3 h w"]:
        """The images of one block; the last may be shorter."""

    def _image(self, index: int) -> UInt8[Tensor, "3 h w"]:
        number = index // self.block
        if self._held is None or self._held[0] != number:
            rows = range(number * self.block, min((number + 1) * self.block, len(self)))
            self._held = number, self._make(rows)
        return self._held[1][index % self.block]

    def map(self, function: Callable[[UInt8[Tensor, "3 h w"]], T], rows: range, pool: Executor) -> list[T]:
        return list(pool.map(function, [self._image(index) for index in rows]))


class DecodedSet(_GeneratedSet):
    """A token cache, decoded by the tokenizer that made it; ``tokenizer`` is on ``device`` already."""

    block = DECODE_BATCH

    def __init__(self, cache: TokenCache, tokenizer: Tokenizer, device: str | torch.device = "cpu") -> None:
        check_tokenizer(cache, tokenizer)
        self.cache, self.tokenizer, self.device = cache, tokenizer, device
        self.description = str(cache.folder)
        self.labels = cache.labels(range(len(cache))).tolist()
        self.class_names = cache.manifest.class_names

    def identity(self) -> dict[str, Any]:
        self.cache.verify()
        shards = "".join(shard["sha256"] for shard in self.cache.manifest.shards)
        return {
            "kind": "tokens",
            **self.tokenizer.identity,
            "shards_sha256": hashlib.sha256(shards.encode()).hexdigest(),
        }

    def _make(self, rows: range) -> UInt8[Tensor, "n 3 h w"]:
        return decode_batch(self.tokenizer, self.cache.tokens(rows), self.block, self.device)


class SampledSet(_GeneratedSet):
    """Images ``0 ... n - 1`` of a seed, sampled in blocks of the model's own batch.

    Args:
        classes: a class for all, or several that take turns; all of the model's by default.
    """

    def __init__(
        self,
        model: Model,
        n: int,
        *,
        classes: str | int | Sequence[str | int] | None = None,
        seed: int = 0,
        settings: Settings | None = None,
    ) -> None:
        self.model, self.seed, self.settings = model, seed, settings or model.settings()
        given = [classes] if isinstance(classes, str | int) else classes
        self.asked = None if given is None else [model.label(name) for name in given]
        self.block = model.kernel_batch
        self.description = MODEL_PREFIX + model.name
        self.class_names = model.class_names
        self.labels = self._labels(range(n)) if self.class_names else [-1] * n

    def identity(self) -> dict[str, Any]:
        return {
            "kind": "model",
            **self.model.identity,
            "settings": asdict(self.settings),
            "seed": self.seed,
            "class": self._asked_names(),
        }

    def _labels(self, rows: range) -> list[int]:
        asked = None if self.asked is None else turns(self.asked, rows)
        return self.model.labels(len(rows), asked, rows.start)

    def _asked_names(self) -> str | list[str] | None:
        if self.asked is None:
            return None
        names = [self.class_names[label] for label in self.asked]
        return names[0] if len(names) == 1 else names

    def _make(self, rows: range) -> UInt8[Tensor, "n 3 h w"]:
        return self.model.sample(
            len(rows),
            classes=None if self.asked is None else turns(self.asked, rows),
            seed=self.seed,
            settings=self.settings,
            first=rows.start,
        )


@dataclass(frozen=True, kw_only=True)
class SamplingRequest:
    """What to sample if a side is a model.

    Attributes:
        classes: a class for all images, or several that take turns; all of the model's by default.
        changes: sampler settings that differ from the preset's; None leaves the preset's.
    """

    n: int = 50_000
    seed: int = 0
    classes: str | int | Sequence[str | int] | None = None
    preset: str = "best"
    changes: Mapping[str, Any] = field(default_factory=dict)
    compiled: bool = False


def kind_of(path: str | os.PathLike[str]) -> str:
    """``model``, ``tokens``, ``features`` or ``images``: what `open_image_set` will take ``path`` for."""
    if str(path).startswith(MODEL_PREFIX):
        return "model"
    folder = Path(path)
    if are_features(folder):
        return "features"
    if "shards" in (_manifest(folder) or {}):
        return "tokens"
    return "model" if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file() else "images"


def open_image_set(
    path: str | os.PathLike[str],
    *,
    tokenizer: str | os.PathLike[str] | None = None,
    device: str = "cpu",
    request: SamplingRequest | None = None,
) -> ImageSet | Features:
    """Open one side of a comparison.

    Args:
        path: images as `open_source` reads them; a finished token cache; a model's folder, or ``model:`` and its name
            or folder; a folder of saved features.
        tokenizer: name or folder of the tokenizer of a token cache or a model, where that has moved.
        request: what a model samples; 50,000 images by its best preset by default.
    """
    kind = kind_of(path)
    if kind == "features":
        return open_features(path)
    if kind == "model":
        request = request or SamplingRequest()
        name = str(path).removeprefix(MODEL_PREFIX)
        found = None if tokenizer is None else str(tokenizer)
        find_model(name).check_modality("image")
        model = load_model(name, tokenizer=found, device=device, compiled=request.compiled)
        settings = model.settings(request.preset, **request.changes)
        return SampledSet(model, request.n, classes=request.classes, seed=request.seed, settings=settings)
    if kind == "tokens":
        cache = TokenCache.open(Path(path))
        name = tokenizer_of(cache.manifest) if tokenizer is None else str(tokenizer)
        return DecodedSet(cache, load_image_tokenizer(name, device=device), device)
    if Path(path).is_dir() and (saved := sorted(Path(path).glob(f"*/{RECORD}"))):
        raise UserError("a side is one set of features", f"{path} holds {len(saved)}", f"give {saved[0].parent}")
    return ImageFileSet(open_source(path))


def _numbers(names: Sequence[str]) -> list[int]:
    """The manifest entry of each file: the number in its name, or its position if the names are not all numbers.

    Names are sorted as text, in which 1000000 comes before 999999.
    """
    numbers = [number_of(name, IMAGE_SUFFIXES) for name in names]
    if sorted(k for k in numbers if k is not None) == list(range(len(names))):
        return [k for k in numbers if k is not None]
    return list(range(len(names)))


def _manifest(folder: Path) -> dict[str, Any] | None:
    """``manifest.json`` of a folder with its hash; the hash alone if the file is not one of ours."""
    path = folder / "manifest.json"
    if not path.is_file():
        return None
    return {"sha256": sha256_file(path), **(read_json_table(path) or {})}


def _content_sha256(source: ImageSource) -> str:
    """SHA-256 over the SHA-256 of every file, in order: names and sizes may stay when images change."""
    digest = hashlib.sha256()
    for index in progress(range(len(source)), total=len(source), unit="img", label="hash"):
        try:
            digest.update(hashlib.sha256(source.read(index)).digest())
        except OSError as error:
            got = f"{source.names[index]}: {error.strerror}"
            raise UserError("image cannot be opened", got, "check the source") from error
    return digest.hexdigest()
