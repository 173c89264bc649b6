"""Score a set of generated pictures against real ones, and write down everything the figure depends on."""

import json
import os
import platform
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64
from torch import Tensor

from ggm_image.data.encode import default_workers
from ggm_image.data.images import ImageSource, open_source
from ggm_image.errors import UserError
from ggm_image.files import progress, sha256_file
from ggm_image.metrics.features import Extractor
from ggm_image.metrics.frechet import FeatureStatistics, frechet_distance

_PACKAGES = ("ggm-image", "torch", "torchvision", "numpy", "scipy", "pillow", "clean-fid", "timm")
_SHOWN_SIZES = 5
_SHOWN_LIST = 32

Source = str | os.PathLike[str] | ImageSource


@dataclass(frozen=True)
class Side:
    """What one pass over a source found.

    Attributes:
        statistics: moments of its features.
        sizes: how many pictures there are of each width and height.
        predictions: (n,) the class that the network sees in each picture; None where it was not asked.
        classes: number of classes of the network; 0 where it was not asked.
    """

    statistics: FeatureStatistics
    sizes: Counter[str]
    predictions: Int64[np.ndarray, " n"] | None
    classes: int


def score(
    generated: Source,
    reference: Source,
    extractor: Extractor,
    *,
    batch_size: int = 64,
    workers: int | None = None,
) -> dict[str, Any]:
    """Fréchet distance between two sources of pictures, with the whole protocol.

    Pictures of any size are taken as they are; each goes through the feature network's own resize. Memory
    holds one batch, whatever the number of pictures.

    Args:
        generated: whatever `open_source` reads, at least 2 pictures.
        reference: the same.
        extractor: see `load_extractor`.
        batch_size: pictures a forward pass.
        workers: decoding threads; one a core by default.

    Returns:
        A dict for JSON: ``metric``, ``value``, ``class_accuracy`` (share of generated pictures in which the
        feature network, where it is a classifier, sees the class that was asked for: its class folder, or the
        class in its manifest; else None), ``features``, ``generated``, ``reference``, ``covariance``,
        ``batch_size``, ``device``, ``versions``, ``warnings``.

    Raises:
        UserError: a source has fewer than 2 pictures, or one that cannot be read.
    """
    if batch_size < 1:
        raise UserError("batch size must be at least 1", batch_size, "use 64")
    sources = {
        side: source if isinstance(source, ImageSource) else open_source(source)
        for side, source in (("generated", generated), ("reference", reference))
    }
    for side, source in sources.items():
        if len(source) < 2:
            got = f"{side}: {len(source)} in {source.description}"
            raise UserError("each side needs at least 2 pictures", got, "give some thousands for a figure")
    drawn, real = (
        measure(
            source,
            extractor,
            batch_size=batch_size,
            workers=workers,
            predict=side == "generated" and extractor.logits is not None,
            label=side,
        )
        for side, source in sources.items()
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = frechet_distance(drawn.statistics, real.statistics)
    manifest = _manifest(sources["generated"])
    return {
        "metric": extractor.title,
        "value": value,
        "class_accuracy": class_accuracy(drawn, sources["generated"], sources["reference"], manifest),
        "features": {
            "name": extractor.name,
            "sha256": extractor.sha256,
            "dimension": extractor.dimension,
            "resize": extractor.resize,
        },
        "generated": {**_described(sources["generated"], drawn), "manifest": _shortened(manifest)},
        "reference": _described(sources["reference"], real),
        "covariance": "unbiased (n - 1), float64",
        "batch_size": batch_size,
        "device": str(extractor.device),
        "versions": {"python": platform.python_version(), **_versions()},
        "warnings": [str(warning.message) for warning in caught],
    }


def measure(
    source: ImageSource,
    extractor: Extractor,
    *,
    batch_size: int = 64,
    workers: int | None = None,
    predict: bool = False,
    label: str = "features",
) -> Side:
    """One pass over a source: feature statistics, sizes and, with ``predict``, the classes that are seen."""
    statistics, sizes = FeatureStatistics.empty(extractor.dimension), Counter[str]()
    predictions: list[np.ndarray] = []
    classes = 0

    def load(index: int) -> tuple[str, Tensor]:
        image = source[index]
        return f"{image.shape[2]}x{image.shape[1]}", extractor.prepare(image)

    starts = range(0, len(source), batch_size)
    with ThreadPoolExecutor(workers or default_workers(), thread_name_prefix="decode") as pool:
        for start in progress(starts, total=len(starts), unit="batch", label=label):
            loaded = list(pool.map(load, range(start, min(start + batch_size, len(source)))))
            sizes.update(size for size, _ in loaded)
            inputs = [image for _, image in loaded]
            statistics.update(extractor.run(extractor.network, inputs))
            if predict and extractor.logits is not None:
                logits = extractor.run(extractor.logits, inputs)
                predictions.append(logits.argmax(axis=1))
                classes = logits.shape[1]
    return Side(statistics, sizes, np.concatenate(predictions) if predictions else None, classes)


def class_accuracy(
    drawn: Side, generated: ImageSource, reference: ImageSource, manifest: dict[str, Any] | None = None
) -> float | None:
    """Share of generated pictures in which the classifier sees the class that was asked for.

    The classifier's classes are taken to be in alphabetical order and named by the class folders of one side.

    Returns:
        In [0, 1]; None where the features are of no classifier, where neither side has as many class folders
        as it has classes, or where nothing says what was asked for.
    """
    asked = [generated.class_names[label] for label in generated.labels if label >= 0]
    if not asked:
        asked = list((manifest or {}).get("classes") or [])
    names = next((s.class_names for s in (reference, generated) if len(s.class_names) == drawn.classes), [])
    if drawn.predictions is None or len(asked) != len(generated) or not names or not set(asked) <= set(names):
        return None
    index = {name: k for k, name in enumerate(sorted(names))}
    return float((drawn.predictions == np.array([index[name] for name in asked])).mean())


def _manifest(source: ImageSource) -> dict[str, Any] | None:
    """What `ggm-image sample` wrote beside its pictures; only the hash of any other file of that name."""
    path = Path(source.description) / "manifest.json"
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        content = None
    return {"sha256": sha256_file(path), **(content if isinstance(content, dict) else {})}


def _shortened(manifest: dict[str, Any] | None) -> dict[str, Any] | None:
    """The manifest without lists of one entry a picture; its hash stands for them."""
    if manifest is None:
        return None
    return {k: v for k, v in manifest.items() if not isinstance(v, list) or len(v) <= _SHOWN_LIST}


def _described(source: ImageSource, side: Side) -> dict[str, Any]:
    sizes = dict(side.sizes.most_common(_SHOWN_SIZES))
    if others := side.sizes.total() - sum(sizes.values()):
        sizes["others"] = others
    return {
        "source": source.description,
        "n": len(source),
        "names_sha256": source.fingerprint(),
        "classes": len(source.class_names),
        "sizes": sizes,
    }


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # a checkout that was never installed
            found[package] = None
    return found
