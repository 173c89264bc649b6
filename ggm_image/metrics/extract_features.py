"""One pass of a feature network over a side."""

import json
import math
import os
import platform
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from ggm_image.data.sources.prefetch import default_workers
from ggm_image.errors import UserError
from ggm_image.metrics.feature_cache import FeatureCache, fingerprint
from ggm_image.metrics.feature_extractors import Extractor
from ggm_image.metrics.feature_file import Features
from ggm_image.metrics.image_sets import ImageSet
from ggm_image.runtime.numerics import exact_arithmetic
from ggm_image.runtime.progress import progress_bar

CHUNK = 512
"""Images, about, that are made and recorded together."""
_PACKAGES = ("ggm-image", "torch", "torchvision", "numpy", "scipy", "pillow", "clean-fid", "timm")


def extract_features(side: ImageSet, extractor: Extractor, **options: Any) -> Features:
    """The whole of a `FeatureExtraction`, whose options these are."""
    with FeatureExtraction(side, extractor, **options) as extraction:
        extraction.make()
        return extraction.finish()


class FeatureExtraction:
    """Features, sizes and predicted classes of all images of a side, in a file.

    Images of any size are taken as they are; each goes through the feature network's own resize. The network always
    sees batches of one size, padded, and an image at its own place in it: its row does not depend on how many
    images there are, or on who makes it.

    Args:
        side: see `open_image_set`.
        extractor: see `load_extractor`.
        statistics: folder under which the features are saved, in a folder named by the hash of their protocol. That of
            an earlier run is reused, and extended if it has fewer images. A temporary file by default.

    Warns:
        UserWarning: saved features are damaged, and are extracted again.
    """

    def __init__(
        self,
        side: ImageSet,
        extractor: Extractor,
        *,
        statistics: str | os.PathLike[str] | None = None,
        batch_size: int = 64,
        workers: int | None = None,
        label: str = "features",
    ) -> None:
        if batch_size < 1:
            raise UserError("batch size must be at least 1", batch_size, "use 64")
        self.side, self.extractor, self.batch_size = side, extractor, batch_size
        self.workers, self.label = workers or default_workers(), label
        protocol = protocol_of(side, extractor, batch_size)
        folder = None if statistics is None else Path(statistics) / key_of(protocol)
        # Whole batches, and where it costs little whole blocks of the side, so that no block is made twice.
        unit = math.lcm(batch_size, side.block)
        unit = unit if unit <= CHUNK else batch_size
        notes = {"source": side.description, "versions": versions()}
        self.store = FeatureCache(protocol, notes, len(side), unit * max(1, CHUNK // unit), folder)

    def __enter__(self) -> "FeatureExtraction":
        return self

    def __exit__(self, *_: object) -> None:
        self.store.close()

    def make(self, share: tuple[int, int] = (0, 1)) -> None:
        """Make what is missing in the share of a process: part r, r + w, r + 2 w ... for process r of w."""
        rank, processes = share
        self._make([rows for rows in self.store.missing() if rows.start // self.store.step % processes == rank])

    def finish(self) -> Features:
        """All features; what others have not made yet is made here, the last first, as they come from below."""
        if self.store.missing():
            self.store.look()
        self._make(self.store.missing()[::-1])
        return self.store.finish()

    def _make(self, parts: list[range]) -> None:
        if parts or self.store.folder is None:
            self.store.open()
        size = self.batch_size
        with (
            ThreadPoolExecutor(self.workers, thread_name_prefix="decode") as pool,
            progress_bar(total=sum(map(len, parts)), unit="img", label=self.label) as advance,
        ):
            for part in parts:
                if self.store.holds(part):  # another process has made it by now
                    advance(len(part))
                    continue
                values = np.zeros(len(part), self.store.type)
                for start in range(part.start // size * size, part.stop, size):
                    rows = range(max(start, part.start), min(start + size, part.stop))
                    self._fill(values[rows.start - part.start : rows.stop - part.start], rows, pool)
                    advance(len(rows))
                self.store.write(part, values)

    def _fill(self, rows: np.ndarray, indices: range, pool: ThreadPoolExecutor) -> None:
        """One batch: ``rows`` of the images ``indices``."""
        side, extractor = self.side, self.extractor

        def load(image: UInt8[Tensor, "3 h w"]) -> tuple[int, int, Tensor]:
            return image.shape[1], image.shape[2], extractor.prepare(image)

        loaded = side.map(load, indices, pool)
        inputs = [image for _, _, image in loaded]
        first = indices.start % self.batch_size
        own = slice(first, first + len(inputs))
        inputs = [*inputs[:1] * first, *inputs, *inputs[-1:] * (self.batch_size - own.stop)]
        with exact_arithmetic():
            features = extractor.run(extractor.network, inputs)[own]
            logits = None if extractor.logits is None else extractor.run(extractor.logits, inputs)[own]
        if (bad := np.flatnonzero(~np.isfinite(features).all(axis=1))).size:
            got = f"{side.name(indices[int(bad[0])])}, {bad.size} of a batch of {len(indices)}"
            raise UserError("features must be finite", got, "check the feature network and its input")
        rows["features"] = features
        rows["label"] = [side.labels[index] for index in indices]
        rows["height"], rows["width"] = [h for h, _, _ in loaded], [w for _, w, _ in loaded]
        rows["prediction"] = -1 if logits is None else logits.argmax(axis=1)
        self.store.notes["classifier_classes"] = 0 if logits is None else logits.shape[1]


def protocol_of(side: ImageSet, extractor: Extractor, batch_size: int) -> dict[str, Any]:
    """All that a row of a side depends on, but for the libraries' versions, which are noted beside them.

    Image k is the same however many there are, and so is its row: their number is no part of it.
    """
    protocol = {
        "side": side.identity(),
        "class_names": side.class_names,
        "features": extractor.identity(),
        "batch_size": batch_size,
        "device": extractor.device.type,
    }
    return json.loads(json.dumps(protocol))


def key_of(protocol: dict[str, Any]) -> str:
    """The name of the folder for features of a protocol."""
    return fingerprint(protocol)[:16]


def versions() -> dict[str, str | None]:
    """Python's and those of the libraries that a figure may depend on."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # a checkout that was never installed
            found[package] = None
    return found
