"""One pass of a feature network over a side."""

import hashlib
import json
import os
import platform
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from ggm_image.data.encode import default_workers, exact_arithmetic
from ggm_image.errors import UserError
from ggm_image.files import progress_bar
from ggm_image.metrics.feature_rows import Features
from ggm_image.metrics.feature_store import FeatureStore
from ggm_image.metrics.features import Extractor
from ggm_image.metrics.sides import Side

CHUNK = 512
"""Pictures, about, after which what is finished is recorded."""
_PACKAGES = ("ggm-image", "torch", "torchvision", "numpy", "scipy", "pillow", "clean-fid", "timm")


def measure(
    side: Side,
    extractor: Extractor,
    *,
    statistics: str | os.PathLike[str] | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    label: str = "features",
) -> Features:
    """Features, sizes and predicted classes of all pictures of a side, in a file.

    Pictures of any size are taken as they are; each goes through the feature network's own resize.

    Args:
        side: see `open_side`.
        extractor: see `load_extractor`.
        statistics: folder under which the features are saved, in a folder named by the hash of their protocol: that of
            an earlier run is used again, or gone on with. A temporary file by default.
        batch_size: pictures a forward pass.
        workers: decoding threads; one a core by default.
        label: of the progress bar.

    Raises:
        UserError: a picture that cannot be read or has features that are not finite, or a folder that cannot be used.

    Warns:
        UserWarning: saved features are damaged, and are made again.
    """
    if batch_size < 1:
        raise UserError("batch size must be at least 1", batch_size, "use 64")
    protocol = protocol_of(side, extractor, batch_size)
    folder = None if statistics is None else Path(statistics) / key_of(protocol)
    store = FeatureStore(protocol, {"source": side.description, "versions": versions()}, folder)
    # Whole batches, so that a run that goes on puts the same pictures together.
    step = batch_size * max(1, CHUNK // batch_size)
    try:
        if store.done < len(side):
            store.open()
        with (
            ThreadPoolExecutor(workers or default_workers(), thread_name_prefix="decode") as pool,
            progress_bar(total=len(side) - store.done, unit="img", label=label) as advance,
        ):
            while store.done < len(side):
                chunk = np.zeros(min(step, len(side) - store.done), store.type)
                for start in range(0, len(chunk), batch_size):
                    part = chunk[start : start + batch_size]
                    first = store.done + start
                    _fill(part, side, range(first, first + len(part)), extractor, pool, store.notes)
                    advance(len(part))
                store.append(chunk)
        return store.finish()
    finally:
        store.close()


def _fill(
    rows: np.ndarray, side: Side, indices: range, extractor: Extractor, pool: ThreadPoolExecutor, notes: dict[str, Any]
) -> None:
    """One batch: ``rows`` of the pictures ``indices``."""

    def load(image: UInt8[Tensor, "3 h w"]) -> tuple[int, int, Tensor]:
        return image.shape[1], image.shape[2], extractor.prepare(image)

    loaded = side.map(load, indices, pool)
    inputs = [image for _, _, image in loaded]
    with exact_arithmetic():
        features = extractor.run(extractor.network, inputs)
        logits = None if extractor.logits is None else extractor.run(extractor.logits, inputs)
    if (bad := np.flatnonzero(~np.isfinite(features).all(axis=1))).size:
        got = f"{side.name(indices[int(bad[0])])}, {bad.size} of a batch of {len(indices)}"
        raise UserError("features must be finite", got, "check the feature network and its input")
    rows["features"] = features
    rows["label"] = [side.labels[index] for index in indices]
    rows["height"], rows["width"] = [h for h, _, _ in loaded], [w for _, w, _ in loaded]
    rows["prediction"] = -1 if logits is None else logits.argmax(axis=1)
    notes["classifier_classes"] = 0 if logits is None else logits.shape[1]


def protocol_of(side: Side, extractor: Extractor, batch_size: int) -> dict[str, Any]:
    """All that the features of a side depend on, but for the libraries' versions, which are noted beside them."""
    protocol = {
        "side": side.identity(),
        "n": len(side),
        "class_names": side.class_names,
        "features": extractor.identity(),
        "batch_size": batch_size,
        "device": extractor.device.type,
    }
    return json.loads(json.dumps(protocol))


def key_of(protocol: dict[str, Any]) -> str:
    """The name of the folder for features of a protocol."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:16]


def versions() -> dict[str, str | None]:
    """Python's and those of the libraries that a figure may depend on."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # a checkout that was never installed
            found[package] = None
    return found
