"""Figures of image sets on one device: features, Fréchet distance, precision, recall, density, coverage, accuracy.

The same figures as `ggm-image fid` gives, for many sets against one reference: images are tensors in memory, features
stay on the device, and what depends on the reference alone is computed once.
"""

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from ggm_image.data.sources.image_files import open_source
from ggm_image.data.sources.prefetch import Prefetch, default_workers
from ggm_image.errors import UserError
from ggm_image.io.files import atomic_path
from ggm_image.metrics.extract_features import versions
from ggm_image.metrics.feature_cache import fingerprint
from ggm_image.metrics.feature_extractors import Extractor
from ggm_image.metrics.prdc import DENSITY_K, RealNeighbours
from ggm_image.runtime.numerics import exact_arithmetic
from ggm_image.runtime.progress import progress
from ggm_image.runtime.streams import say

FEATURE_BATCH = {"cuda": 500}
"""Images in one pass of a feature network; on a GPU smaller batches are padded, so that it sees one shape only."""
_CPU_BATCH = 50


@dataclass(frozen=True)
class Images:
    """Images of one size in memory.

    Attributes:
        pixels: in [0, 255].
        labels: class of each, an index into ``class_names``; -1 where none is known.
        class_names: names of the classes.
    """

    pixels: UInt8[Tensor, "n 3 h w"]
    labels: Int64[np.ndarray, " n"]
    class_names: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    def picked(self, rows: Sequence[int]) -> "Images":
        """Some of them."""
        chosen = list(rows)
        return Images(self.pixels[chosen], self.labels[chosen], self.class_names)

    def sha256(self) -> str:
        """Of pixels, labels and class names."""
        digest = hashlib.sha256(repr((tuple(self.pixels.shape), self.class_names)).encode())
        digest.update(self.labels.astype("<i8").tobytes())
        digest.update(self.pixels.contiguous().numpy())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write them to a .npz file, which `load_images` reads in place of a folder."""
        with atomic_path(path) as temporary:
            names = np.array(self.class_names, dtype=np.str_)
            np.savez(temporary, images=self.pixels.numpy(), labels=self.labels, class_names=names)


def load_images(path: Path, size: int, count: int | None = None) -> Images:
    """Images of a source, cropped and resized to ``size`` pixels as `ggm-image encode` does.

    Args:
        path: what `open_source` reads, or a .npz file of `Images.save`.
        size: side in pixels.
        count: take so many, the first of each class in equal share, see `equal_share`; all by default.

    Raises:
        UserError: the source has fewer images, or one that cannot be read, or the file holds images of another size.
    """
    if path.suffix == ".npz":
        found = _load_npz(path, size)
        return found if count is None else found.picked(equal_share(found.labels, count, str(path)))
    source = open_source(path)
    rows = range(len(source)) if count is None else equal_share(source.labels, count, str(path))
    pixels = torch.empty(len(rows), 3, size, size, dtype=torch.uint8)
    done = 0
    batches = Prefetch(source, size, workers=default_workers()).batches(rows, 256)
    for _, images in progress(batches, total=-(-len(rows) // 256), unit="batch", label=path.name):
        for image in images:
            if isinstance(image, UserError):
                raise image
            pixels[done] = image
            done += 1
    return Images(pixels, np.array([source.labels[k] for k in rows], dtype=np.int64), list(source.class_names))


def _load_npz(path: Path, size: int) -> Images:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            pixels, labels = torch.from_numpy(arrays["images"]), arrays["labels"]
            names = [str(name) for name in arrays["class_names"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        fix = "give a folder or tar of images, or a file written by --pack"
        raise UserError("packed images cannot be read", f"{path}: {error}", fix) from error
    if pixels.dtype != torch.uint8 or pixels.shape != (len(labels), 3, size, size):
        got = f"{path}: {pixels.dtype} {tuple(pixels.shape)}"
        raise UserError(f"packed images must be uint8 (N, 3, {size}, {size})", got, "pack them for this model")
    return Images(pixels, labels.astype(np.int64), names)


def equal_share(labels: Sequence[int] | np.ndarray, count: int, where: str) -> list[int]:
    """Indices of ``count`` images, the first of each class, each class count / C of them, the first classes one more.

    Raises:
        UserError: a class has too few.
    """
    if count > len(labels):
        raise UserError("there are too few images", f"{where}: {len(labels)} for {count}", "ask for fewer")
    given = np.asarray(labels)
    classes = np.unique(given)
    share, more = divmod(count, len(classes))
    rows: list[int] = []
    for k, label in enumerate(classes):
        of_class, wanted = np.flatnonzero(given == label), share + (k < more)
        if len(of_class) < wanted:
            got = f"{where}: class {label} has {len(of_class)} images for {wanted}"
            raise UserError("a class has too few images for an equal share", got, "ask for fewer")
        rows += of_class[:wanted].tolist()
    return sorted(rows)


class FeatureNetwork:
    """A feature network and the reference in its features.

    Args:
        extractor: on its device.
        reference: the images against which all figures are taken.
        statistics: folder where features of the reference are kept.
    """

    def __init__(self, extractor: Extractor, reference: Images, *, statistics: Path | None = None) -> None:
        self.extractor, self.device = extractor, extractor.device
        self.classes = 0
        features = self._reference_features(reference, statistics)
        with exact_arithmetic():
            self.neighbours = RealNeighbours(features, device=self.device)
            self.count, self.mean, covariance = moments(features)
            self.trace = covariance.trace()
            variances, directions = torch.linalg.eigh(covariance)
            # As `ggm_image.metrics.fid.factor`: a variance that is rounding noise counts as zero.
            kept = variances > variances[-1] * len(variances) * torch.finfo(torch.float64).eps
            self.factor = directions[:, kept] * variances[kept].sqrt()

    def _reference_features(self, reference: Images, statistics: Path | None) -> Float[Tensor, "n d"]:
        if statistics is None:
            return self.features(reference.pixels)[0]
        request = {
            "images_sha256": reference.sha256(),
            "features": self.extractor.identity(),
            "device": self.device.type,
            "torch": versions()["torch"],
        }
        path = statistics / f"{fingerprint(request)[:16]}.npy"
        if path.is_file():
            try:
                saved = torch.from_numpy(np.load(path, allow_pickle=False))
                if saved.shape == (len(reference), self.extractor.dimension):
                    return saved.to(self.device)
                say(f"note: {path} has features of shape {tuple(saved.shape)}: computed again")
            except (OSError, ValueError) as error:
                say(f"note: {path} cannot be read ({error}): computed again")
        features = self.features(reference.pixels)[0]
        with atomic_path(path) as temporary:
            np.save(temporary, features.cpu().numpy())
        return features

    def features(self, pixels: UInt8[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n d"], Int64[Tensor, " n"] | None]:
        """Features (float32, on the device) and the classes that the network sees, None where it is no classifier.

        Raises:
            UserError: a feature is not finite.
        """
        extractor, size = self.extractor, FEATURE_BATCH.get(self.device.type, _CPU_BATCH)
        features, seen = [], []
        with exact_arithmetic(), torch.jit.optimized_execution(False):  # TorchScript would compile kernels for seconds
            for start in range(0, len(pixels), size):
                part = pixels[start : start + size]
                own = len(part)
                if own < size and self.device.type == "cuda":
                    part = torch.cat([part, part[-1:].expand(size - own, *part.shape[1:])])
                inputs = self._prepared(part)
                features.append(extractor.network(inputs)[:own].float())
                if extractor.logits is not None:
                    logits = extractor.logits(inputs)[:own]
                    self.classes = logits.shape[1]
                    seen.append(logits.argmax(dim=1))
            found = torch.cat(features)
        if not bool(found.isfinite().all()):
            raise UserError("features must be finite", extractor.name, "check the feature network and its input")
        return found, torch.cat(seen) if seen else None

    def _prepared(self, part: UInt8[Tensor, "n 3 h w"]) -> Tensor:
        if self.extractor.prepare_batch is not None:
            return self.extractor.prepare_batch(part.to(self.device))
        with ThreadPoolExecutor(default_workers()) as pool:
            return torch.stack(list(pool.map(self.extractor.prepare, part))).to(self.device)

    def distance(self, features: Float[Tensor, "n d"]) -> float:
        """Fréchet distance to the reference: the value of `frechet_distance`.

        With F F^T = C_reference, the singular values of F^T F_b are the roots of the eigenvalues of F^T C_b F.
        """
        with exact_arithmetic():
            _, mean, covariance = moments(features)
            overlap = torch.linalg.eigvalsh(self.factor.T @ covariance @ self.factor).clamp(min=0).sqrt().sum()
            distance = (mean - self.mean).square().sum() + covariance.trace() + self.trace - 2 * overlap
        return max(0.0, float(distance))

    def accuracy(self, seen: Tensor | None, labels: Int64[np.ndarray, " n"], names: Sequence[str]) -> float | None:
        """Share of images in which the network sees their class, as `ggm_image.metrics.per_class.class_accuracy`."""
        if seen is None or len(names) != self.classes or (labels < 0).any():
            return None
        found = np.array(sorted(names))[seen.cpu().numpy()]
        return float((found == np.array(names)[labels]).mean())


def moments(features: Float[Tensor, "n d"]) -> tuple[int, Float[Tensor, " d"], Float[Tensor, "d d"]]:
    """Count, mean and unbiased covariance, in float64; on the CPU where the device has no float64."""
    rows = (features.cpu() if features.device.type == "mps" else features).double()
    mean = rows.mean(dim=0)
    rows = rows - mean
    return len(rows), mean, rows.T @ rows / (len(rows) - 1)


def figures(
    networks: Sequence[FeatureNetwork],
    parts: Iterable[UInt8[Tensor, "m 3 h w"]],
    labels: Int64[np.ndarray, " n"],
    class_names: Sequence[str],
) -> list[dict[str, Any]]:
    """The figures of a set of images under each network.

    Args:
        networks: with the reference.
        parts: the images, part by part; more than 5.
        labels: class of each, an index into ``class_names``.
        class_names: names of the classes.

    Returns:
        For each network ``features`` (its name), ``distance``, ``precision``, ``recall``, ``density``, ``coverage``,
        and ``class_accuracy``, None where the network is no classifier of these classes.
    """
    if len(labels) <= DENSITY_K:
        raise UserError(f"figures need more than {DENSITY_K} images", len(labels), "give some thousands")
    found: list[tuple[list[Tensor], list[Tensor]]] = [([], []) for _ in networks]
    for pixels in parts:
        for network, (rows, classes) in zip(networks, found, strict=True):
            features, seen = network.features(pixels)
            rows.append(features)
            classes += [] if seen is None else [seen]
    result = []
    for network, (rows, classes) in zip(networks, found, strict=True):
        features = torch.cat(rows)
        with exact_arithmetic():
            shares = network.neighbours.figures(features)
        accuracy = network.accuracy(torch.cat(classes) if classes else None, labels, class_names)
        result.append(
            {
                "features": network.extractor.title,
                "distance": round(network.distance(features), 4),
                **{name: round(value, 4) for name, value in shares.items()},
                "class_accuracy": None if accuracy is None else round(accuracy, 4),
            }
        )
    return result
