"""What a tokenizer keeps of images: PSNR, SSIM, rFID, chequered patches, codebook use, and images to look at.

No image sampled with these codes can be better, so look at this before training a model on them.
"""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ggm_image.data.decode import decode_batch
from ggm_image.data.encode import fitting_batch
from ggm_image.data.sources.image_files import ImageSource
from ggm_image.data.sources.prefetch import Prefetch, default_workers
from ggm_image.data.token_cache.reader import TokenCache
from ggm_image.errors import UserError
from ggm_image.image.io import save_png
from ggm_image.image.visualize import image_grid
from ggm_image.io.files import write_json
from ggm_image.metrics.checker import CELL, THRESHOLD, chequered_share
from ggm_image.metrics.feature_extractors import Extractor
from ggm_image.metrics.fid import FeatureStatistics, frechet_distance
from ggm_image.metrics.psnr_ssim import psnr_each, ssim_each
from ggm_image.runtime.progress import progress
from ggm_image.tokenizers.base import Tokenizer

PAIRS_SHOWN = 16
WORST_SHOWN = 16


def codebook_use(tokens: Int[Tensor, "*shape"], codebook_size: int) -> dict[str, float]:
    """How much of a codebook is used.

    Returns:
        ``share``: share of the codes that occur; ``perplexity``: exp of the entropy of their frequencies in
        nats, at most the codebook size.
    """
    counts = torch.bincount(tokens.reshape(-1).to(torch.int64), minlength=codebook_size).double()
    share = counts / counts.sum()
    entropy = -torch.special.xlogy(share, share).sum()
    return {"share": float((counts > 0).double().mean()), "perplexity": float(entropy.exp())}


def report(
    source: ImageSource,
    cache: TokenCache,
    tokenizer: Tokenizer,
    *,
    device: str | torch.device = "cpu",
    batch_size: int | None = None,
    images: int = 5000,
    seed: int = 0,
    workers: int | None = None,
    extractor: Extractor | None = None,
    reference: ImageSource | None = None,
) -> dict[str, Any]:
    """Compare a cache's reconstructions with the images that it was made from.

    Writes ``report.json``, ``report.png`` (pairs of original and reconstruction) and ``worst.png`` (those of the lowest
    PSNR, worst first) into the cache's folder.

    Args:
        source: the images that were encoded.
        cache: their tokens.
        tokenizer: the one that made them, on ``device``.
        device, batch_size, workers: as in `ggm_image.data.encode.encode`.
        images, seed: at most so many rows, chosen by the seed, are decoded; codebook use is over all rows.
        extractor: features for the Fréchet distance of the images, at the size that is encoded, to reconstructions.
        reference: other images, e.g. of the validation set. The Fréchet distances of originals and of reconstructions
            to them are measured too: the difference is what the tokenizer costs, free of the bias of the sample size.

    Returns:
        What ``report.json`` holds.
    """
    if reference is not None and extractor is None:
        raise UserError("a reference needs features", reference.description, "pass an extractor")
    manifest = cache.manifest
    batch_size = fitting_batch(device, manifest.image_size) if batch_size is None else batch_size
    workers = workers or default_workers()
    # The first rows of a permutation, so that report.png shows a part of what is measured.
    rows = torch.randperm(len(cache), generator=torch.Generator().manual_seed(seed))[:images]
    distance = None if extractor is None else _Distance(extractor)
    if distance is not None and reference is not None:
        others = Prefetch(reference, manifest.image_size, workers=workers)
        for _, batch in _batches(others, range(len(reference)), batch_size, "reference"):
            distance.update_reference(batch)
    prefetch = Prefetch(source, manifest.image_size, workers=workers, copies=manifest.copies)
    items = manifest.item_of_row()[rows.numpy()].tolist()
    pairs = _Pairs()
    for group, original in _batches(prefetch, items, batch_size, "report"):
        tokens = cache.tokens(rows[pairs.count : pairs.count + len(group)])
        decoded = decode_batch(tokenizer, tokens, batch_size, device)
        pairs.add(group, original, decoded)
        if distance is not None:
            distance.update(original, decoded)
    result: dict[str, Any] = {"images": pairs.count, "seed": seed, **pairs.figures(), **_protocol(cache, tokenizer)}
    if distance is not None:
        result["frechet"] = distance.result(None if reference is None else reference.description)
    result["worst"] = [{"name": source.names[item % len(source)], "psnr_db": psnr} for psnr, item, _ in pairs.worst]
    save_png(_side_by_side(pairs.shown), Path(cache.folder) / "report.png")
    save_png(_side_by_side([image for _, _, pair in pairs.worst for image in pair]), Path(cache.folder) / "worst.png")
    write_json(Path(cache.folder) / "report.json", result)
    return result


def _batches(
    prefetch: Prefetch, items: Sequence[int], batch_size: int, label: str
) -> Iterator[tuple[list[int], UInt8[Tensor, "n 3 h w"]]]:
    """Items and their images, batch by batch, with a progress bar; raises UserError for one that cannot be read."""
    batches = prefetch.batches(items, batch_size)
    for group, images in progress(batches, total=-(-len(items) // batch_size), unit="batch", label=label):
        for image in images:
            if isinstance(image, UserError):  # it could be read when it was encoded
                raise image
        yield group, torch.stack([image for image in images if isinstance(image, Tensor)])


def _protocol(cache: TokenCache, tokenizer: Tokenizer) -> dict[str, Any]:
    """How the codes are used, how pairs were measured, and by which tokenizer."""
    manifest = cache.manifest
    tokens = len(cache) * manifest.grid[0] * manifest.grid[1]
    use = codebook_use(cache.load()[0], manifest.codebook_size)
    return {
        "codebook": {"size": manifest.codebook_size, "tokens": tokens, **use},
        "protocol": "8-bit RGB; PSNR and SSIM per image, then averaged; "
        "SSIM: Gaussian 11 x 11, sigma 1.5, channels averaged; "
        f"chequered: share of cells of {CELL} x {CELL} pixels with an energy above {THRESHOLD}, and of images with any",
        "tokenizer": {
            "name": manifest.tokenizer_name,
            "sha256": manifest.tokenizer_sha256,
            "decoder_sha256": tokenizer.decoder_sha256,
        },
    }


class _Pairs:
    """Originals and their reconstructions: figures of each, the first pairs, and the worst ones.

    Attributes:
        shown: images of the first `PAIRS_SHOWN` pairs, original and reconstruction in turn.
        worst: PSNR, item and pair of those with the lowest PSNR, worst first.
    """

    def __init__(self) -> None:
        self.count = 0
        self.shown: list[Tensor] = []
        self.worst: list[tuple[float, int, Tensor]] = []
        self._quality: list[Tensor] = []
        self._chequered: list[Tensor] = []

    def add(self, items: Sequence[int], original: UInt8[Tensor, "n 3 h w"], decoded: UInt8[Tensor, "n 3 h w"]) -> None:
        """Take in one batch."""
        self._quality.append(torch.stack([psnr_each(original, decoded), ssim_each(original, decoded)]))
        self._chequered.append(torch.stack([chequered_share(original), chequered_share(decoded)]))
        pairs = torch.stack([original, decoded], dim=1)
        # A pair is copied, because a view would keep its whole batch in memory.
        found = zip(self._quality[-1][0].tolist(), items, pairs, strict=True)
        candidates = [*self.worst, *((psnr, item, pair.clone()) for psnr, item, pair in found)]
        self.worst = sorted(candidates, key=lambda w: w[:2])[:WORST_SHOWN]
        missing = max(0, PAIRS_SHOWN - self.count)
        self.shown += [image for pair in zip(original[:missing], decoded[:missing], strict=True) for image in pair]
        self.count += len(items)

    def figures(self) -> dict[str, Any]:
        """PSNR, SSIM and chequered patches over all pairs."""
        psnr, ssim = torch.cat(self._quality, dim=1)
        return {
            "psnr_db": {"mean": float(psnr.mean()), "min": float(psnr.min()), "max": float(psnr.max())},
            "ssim": {"mean": float(ssim.mean()), "min": float(ssim.min()), "max": float(ssim.max())},
            "chequered": _chequered(torch.cat(self._chequered, dim=1)),
        }


def _chequered(shares: Float[Tensor, "2 n"]) -> dict[str, dict[str, float]]:
    """Of originals and reconstructions: share of cells that are chequered, and of images with such a cell."""
    sides = zip(("originals", "reconstructions"), shares, strict=True)
    return {side: {"cells": float(x.mean()), "images": float((x > 0).double().mean())} for side, x in sides}


class _Distance:
    """Fréchet distances of originals, reconstructions and a reference, batch by batch in constant memory."""

    def __init__(self, extractor: Extractor) -> None:
        self.extractor = extractor
        self.originals, self.decoded, self.reference = (FeatureStatistics.empty(extractor.dimension) for _ in range(3))

    def update(self, original: UInt8[Tensor, "n 3 h w"], decoded: UInt8[Tensor, "n 3 h w"]) -> None:
        self.originals.update(self.extractor(original))
        self.decoded.update(self.extractor(decoded))

    def update_reference(self, images: UInt8[Tensor, "n 3 h w"]) -> None:
        self.reference.update(self.extractor(images))

    def result(self, reference: str | None) -> dict[str, Any]:
        title = self.extractor.title
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found: dict[str, Any] = {
                "metric": "rFID" if title == "FID" else f"r{title}",
                "value": frechet_distance(self.originals, self.decoded),
                "features": self.extractor.name,
                "sha256": self.extractor.sha256,
                "resize": self.extractor.resize,
            }
            if reference is not None:
                originals, decoded = (frechet_distance(x, self.reference) for x in (self.originals, self.decoded))
                found["reference"] = {
                    "source": reference,
                    "images": self.reference.count,
                    "metric": title,
                    "originals": originals,
                    "reconstructions": decoded,
                    "excess": decoded - originals,
                }
        found["warnings"] = list(dict.fromkeys(str(warning.message) for warning in caught))
        return found


def _side_by_side(images: Sequence[Tensor]) -> UInt8[Tensor, "3 h w"]:
    """Pairs of original and reconstruction, four pairs a row; small images enlarged by whole pixels."""
    pairs = [torch.cat(list(images[k : k + 2]), dim=-1) for k in range(0, len(images), 2)]
    scale = max(1, 96 // pairs[0].shape[-2])
    large = torch.stack(pairs).repeat_interleave(scale, dim=-1).repeat_interleave(scale, dim=-2)
    return image_grid(large, columns=4, gap=8)
