"""Score generated images against real ones, with a record of everything the figures depend on."""

import os
import warnings
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from ggm_image.data.sources.image_files import ImageSource
from ggm_image.errors import UserError
from ggm_image.metrics import DEFAULT_METRICS, METRICS, find_metrics
from ggm_image.metrics.bootstrap import bootstrap as bootstrap_distance
from ggm_image.metrics.extract_features import FeatureExtraction, versions
from ggm_image.metrics.feature_extractors import Extractor
from ggm_image.metrics.feature_file import Features
from ggm_image.metrics.fid import frechet_distance
from ggm_image.metrics.image_sets import ImageFileSet, ImageSet, open_image_set
from ggm_image.metrics.kid import kernel_distance
from ggm_image.metrics.per_class import class_accuracy, per_class
from ggm_image.metrics.prdc import DENSITY_K, PRECISION_K, prdc

_SHOWN_SIZES = 5
_SHOWN_LIST = 32


@dataclass(frozen=True)
class MetricJob:
    """What a metric of the registry is computed with, beside the features."""

    bootstrap: int
    seed: int
    device: torch.device


Source = str | os.PathLike[str] | ImageSource | ImageSet | Features


def evaluate(
    generated: Source,
    reference: Source,
    extractor: Extractor,
    *,
    metrics: Collection[str] = DEFAULT_METRICS,
    statistics: str | os.PathLike[str] | None = None,
    bootstrap: int = 100,
    seed: int = 0,
    batch_size: int = 64,
    workers: int | None = None,
    share: tuple[int, int] = (0, 1),
) -> dict[str, Any]:
    """Distances between two sides, with the whole protocol.

    Memory does not grow with the number of images.

    Args:
        generated, reference: anything that `open_image_set` reads, at least 2 images.
        extractor: see `load_extractor`.
        metrics: names of `METRICS`.
        statistics: folder where features are kept for reuse; see `FeatureExtraction`.
        bootstrap: replicates for the interval of the Fréchet distance; 0 for none.
        seed: of the bootstrap and of the subsets of KID.
        batch_size, workers: images a forward pass, and decoding threads, one a core by default.
        share: rank of this process and number of processes, which extract the features together in ``statistics``. Rank
            0 continues until all features exist, even if other processes fail, and computes the figures.

    Returns:
        {} for all ranks but 0. Else a dict for JSON with the figures of `METRICS`, ``class_accuracy`` (share of
        generated images in which a feature network that is a classifier sees the class that was asked for),
        ``per_class`` and the protocol. What was not asked for or cannot be computed is None.
    """
    _check(metrics, bootstrap, batch_size)
    sides = {"generated": _opened(generated, extractor), "reference": _opened(reference, extractor)}
    for name, side in sides.items():
        _check_side(name, side, extractor)
    if share[1] > 1 and statistics is None and not all(isinstance(side, Features) for side in sides.values()):
        what = "several processes need a folder to share features in"
        raise UserError(what, f"{share[1]} processes", "add --statistics DIR")
    options = {"statistics": statistics, "batch_size": batch_size, "workers": workers}
    with warnings.catch_warnings(record=True) as caught, ExitStack() as stack:
        warnings.simplefilter("always")
        # The reference first: an error in it should not appear after hours of sampling.
        real = _extraction("reference", sides["reference"], extractor, share, stack, options)
        sampled = _extraction("generated", sides["generated"], extractor, share, stack, options)
        if share[0] == 0:
            job = MetricJob(bootstrap, seed, extractor.device)
            report = _report(extractor, sides, _finished(sampled), _finished(real), metrics, job)
    _pass_on(caught)
    if share[0] != 0:
        return {}
    return report | {
        "batch_size": batch_size,
        "device": str(extractor.device),
        "statistics": None if statistics is None else str(statistics),
        "versions": versions(),
        "warnings": list(dict.fromkeys(str(w.message) for w in caught if w.category is UserWarning)),
    }


def _extraction(
    label: str,
    side: ImageSet | Features,
    extractor: Extractor,
    share: tuple[int, int],
    stack: ExitStack,
    options: dict[str, Any],
) -> Features | FeatureExtraction:
    """Extract this process's share of a side's features; their files are needed until ``stack`` is closed."""
    if isinstance(side, Features):
        return side
    extraction = stack.enter_context(FeatureExtraction(side, extractor, label=label, **options))
    extraction.make(share)
    return extraction


def _report(
    extractor: Extractor,
    sides: dict[str, ImageSet | Features],
    sampled: Features,
    real: Features,
    metrics: Collection[str],
    job: MetricJob,
) -> dict[str, Any]:
    """The figures, and what is known of the features and of the two sides."""
    return {
        "metric": extractor.title,
        **_figures(sampled, real, metrics, job),
        "features": {name: getattr(extractor, name) for name in ("name", "sha256", "dimension", "resize")},
        "generated": _described(sampled, sides["generated"]),
        "reference": {**_described(real, sides["reference"]), "class_accuracy": class_accuracy(real, sampled)},
        "covariance": "unbiased (n - 1), float64",
    }


def _check(metrics: Collection[str], bootstrap: int, batch_size: int) -> None:
    find_metrics(metrics)
    if bootstrap < 0 or bootstrap == 1:
        raise UserError("a bootstrap needs at least 2 replicates", bootstrap, "use 100, or 0 for no interval")
    if batch_size < 1:
        raise UserError("batch size must be at least 1", batch_size, "use 64")


def _check_side(name: str, side: ImageSet | Features, extractor: Extractor) -> None:
    if len(side) < 2:
        got = f"{name}: {len(side)} in {_source(side)}"
        raise UserError("each side needs at least 2 images", got, "use at least a few thousand")
    if isinstance(side, Features) and side.protocol["features"] != extractor.identity():
        theirs, ours = side.protocol["features"], extractor.identity()
        got = f"{name}: {_named(theirs)}, now {_named(ours)}"
        raise UserError("saved features are of another network", got, "give the same --features to both sides")


def _pass_on(caught: Sequence[warnings.WarningMessage]) -> None:
    """Issue again what is not for the report: it keeps the plain user warnings, which are about the figures."""
    for warning in caught:
        if warning.category is not UserWarning:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _opened(source: Source, extractor: Extractor) -> ImageSet | Features:
    if isinstance(source, ImageSet | Features):
        return source
    if isinstance(source, ImageSource):
        return ImageFileSet(source)
    return open_image_set(source, device=str(extractor.device))


def _finished(measured: Features | FeatureExtraction) -> Features:
    return measured if isinstance(measured, Features) else measured.finish()


def _source(side: ImageSet | Features) -> str:
    return side.description if isinstance(side, ImageSet) else side.record["notes"]["source"]


def _named(identity: dict[str, Any]) -> str:
    return f"{identity['name']} {(identity['sha256'] or 'without hash')[:12]}"


def fid(generated: Features, reference: Features, job: MetricJob) -> dict[str, Any]:
    """Fréchet distance with its interval."""
    value = frechet_distance(generated.statistics, reference.statistics)
    if not job.bootstrap:
        return {"value": value}
    interval = bootstrap_distance(
        generated.matrix, reference.statistics, value, replicates=job.bootstrap, seed=job.seed, device=job.device
    )
    return {"value": value, "bootstrap": interval}


def kid(generated: Features, reference: Features, job: MetricJob) -> dict[str, Any]:
    """Kernel distance."""
    return {"kid": kernel_distance(generated.matrix, reference.matrix, seed=job.seed)}


def precision_recall(generated: Features, reference: Features, job: MetricJob) -> dict[str, Any]:
    """Precision, recall, density and coverage; nothing where a side has too few images for them."""
    fewest = min(len(generated), len(reference))
    if fewest <= DENSITY_K:
        warnings.warn(
            f"{fewest} samples: precision, recall, density and coverage need more than {DENSITY_K}", stacklevel=2
        )
        return {}
    found = prdc(generated.matrix, reference.matrix, device=job.device)
    return {**found, "neighbours": {"precision_recall_k": PRECISION_K, "density_coverage_k": DENSITY_K}}


def _figures(sampled: Features, real: Features, metrics: Collection[str], job: MetricJob) -> dict[str, Any]:
    """Every figure, in the order of the registry."""
    found: dict[str, Any] = {figure: None for metric in METRICS.values() for figure in metric.figures}
    for name, metric in find_metrics(metrics).items():
        figures = metric.load()(sampled, real, job)
        assert figures.keys() <= set(metric.figures), f"metric {name} returns what its entry does not name"
        found |= figures
    found["class_accuracy"] = class_accuracy(sampled, real)
    found["per_class"] = per_class(sampled, real, frechet="fid" in metrics, kernel="kid" in metrics, seed=job.seed)
    return found


def _described(features: Features, side: ImageSet | Features) -> dict[str, Any]:
    sizes = dict(features.sizes.most_common(_SHOWN_SIZES))
    if others := features.sizes.total() - sum(sizes.values()):
        sizes["others"] = others
    return {
        "source": _source(side),
        "n": len(features),
        **features.protocol["side"],
        "classes": len(features.class_names),
        "sizes": sizes,
        "skipped": side.skipped if isinstance(side, ImageFileSet) else [],
        "manifest": _shortened(side.manifest) if isinstance(side, ImageFileSet) else None,
        "saved": None if features.folder is None else str(features.folder),
        "reused": features.reused,
        "batch_size": features.protocol["batch_size"],
        "device": features.protocol["device"],
        "made_with": features.record["notes"]["versions"],
    }


def _shortened(manifest: dict[str, Any] | None) -> dict[str, Any] | None:
    """The manifest without lists of one entry an image; its hash stands for them."""
    if manifest is None:
        return None
    return {k: v for k, v in manifest.items() if not isinstance(v, list) or len(v) <= _SHOWN_LIST}
