"""Features without a trained network: a stand-in for the extractor, images for it, and matrices of plain arrays."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ggm_image.metrics.feature_extractors import Extractor
from ggm_image.metrics.feature_file import FeatureMatrix, Features, row_type
from ggm_image.metrics.image_sets import ImageSet

CHANNELS = ["blue", "green", "red"]  # in alphabetical order, as the stand-in classifier has them


class Means(nn.Module):
    """Features: the channel means. Classes: the strongest channel, named in alphabetical order."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float().mean(dim=[2, 3])

    @torch.jit.export
    def logits(self, x: Tensor) -> Tensor:
        return x.float().mean(dim=[2, 3]).flip(1)


def means_extractor(network: Callable[[Tensor], Tensor] | None = None) -> Extractor:
    module = Means()
    return Extractor(
        name="means",
        title="FD (means)",
        sha256="0" * 64,
        dimension=3,
        resize="none",
        device=torch.device("cpu"),
        prepare=lambda image: image,
        network=network or module,
        logits=module.logits,
    )


def paint(folder: Path, colours: Sequence[str], *, seed: int = 0, classes: bool = True) -> np.ndarray:
    """A noisy image of each colour, of two sizes, in class folders or flat; returns channel means in order."""
    rng = np.random.default_rng(seed)
    means = {}
    for k, colour in enumerate(colours):
        pixels = rng.integers(0, 100, (8, 8 + k % 2, 3))
        pixels[..., ["red", "green", "blue"].index(colour)] += 150
        path = folder / colour / f"{k:03d}.png" if classes else folder / f"{k:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path)
        means[path.relative_to(folder).as_posix()] = pixels.mean(axis=(0, 1))
    return np.array([means[name] for name in sorted(means)])


class NoiseImages(ImageSet):
    """Noise, image by image; asks ``before`` each, which may interrupt."""

    def __init__(self, n: int, before: Callable[[int], object] = lambda index: None) -> None:
        self.description, self.before, self.asked = "noise", before, []
        self.labels, self.class_names = [k % 3 for k in range(n)], CHANNELS

    def identity(self) -> dict[str, Any]:
        return {"kind": "noise"}

    def map(self, function: Callable[[Tensor], Any], rows: range, pool: Executor) -> list[Any]:
        return [function(self.picture(index)) for index in rows]

    def picture(self, index: int) -> Tensor:
        self.before(index)
        self.asked.append(index)
        return torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))


def rows_of(features: np.ndarray, labels: Sequence[int] | None = None) -> np.ndarray:
    rows = np.zeros(len(features), row_type(features.shape[1]))
    rows["features"] = features
    rows["label"] = -1 if labels is None else labels
    return rows


def matrix_of(features: np.ndarray) -> FeatureMatrix:
    return FeatureMatrix(rows_of(features))


def features_of(features: np.ndarray, labels: Sequence[int], class_names: list[str]) -> Features:
    protocol = {"class_names": class_names, "n": len(features)}
    return Features(rows_of(features, labels), {"protocol": protocol, "notes": {}})
