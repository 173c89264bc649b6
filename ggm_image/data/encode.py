"""Encode images into a token cache."""

import functools
import os
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from ggm_image.data.copies import ORIGINAL, Copy, check_shifts, copies_of, order_of
from ggm_image.data.reduction import say_reduction, some_sizes
from ggm_image.data.sources.base import KEY_BYTES, ImageStream, Sample
from ggm_image.data.sources.image_files import ImageSource
from ggm_image.data.sources.open import open_images
from ggm_image.data.sources.prefetch import DecodedImage, decoded, default_workers
from ggm_image.data.token_cache.manifest import SHARD_SIZE, Manifest, finished_shards
from ggm_image.data.token_cache.provenance import NOTHING, check_unchanged, digest, stacked, state_of
from ggm_image.data.token_cache.reader import TokenCache, discard_cache
from ggm_image.data.token_cache.writer import TokenCacheWriter
from ggm_image.errors import UserError
from ggm_image.image.extension import MAX_SIDE
from ggm_image.image.io import open_image
from ggm_image.image.preprocess import PREPROCESSING, preprocess, to_model
from ggm_image.runtime.numerics import exact_arithmetic
from ggm_image.runtime.progress import progress
from ggm_image.runtime.streams import say
from ggm_image.tokenizers.base import Tokenizer

PRECISIONS = ("fp32", "bf16")
SIZES = 1000  # original sizes that are remembered, for their median


def encode_batch(
    tokenizer: Tokenizer,
    images: Sequence[UInt8[Tensor, "3 h w"]],
    batch_size: int,
    device: str | torch.device,
    *,
    half: bool = False,
) -> Int[Tensor, "n rows columns"]:
    """Tokens of at most ``batch_size`` images, computed in a batch of exactly that size.

    Kernels choose their order of summation by the batch size, so a smaller last batch is padded: a
    image's tokens do not depend on how many others came with it. With ``half`` products are in bfloat16.
    """
    batch = torch.zeros(batch_size, *images[0].shape, dtype=torch.uint8)
    torch.stack(list(images), out=batch[: len(images)])
    pixels = to_model(batch.to(device, non_blocking=True))
    if half:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    with exact_arithmetic():
        tokens = tokenizer.encode(pixels, half=True) if half else tokenizer.encode(pixels)
        return tokens[: len(images)].cpu()


def fitting_batch(device: str | torch.device, image_size: int) -> int:
    """Images a forward pass by default: on a CPU what stays near its caches, 64 of 32 pixels and 1 of 256."""
    return 64 if torch.device(device).type != "cpu" else min(64, max(1, (1 << 16) // image_size**2))


def encode(
    source: str | os.PathLike[str] | ImageSource | ImageStream,
    out: str | os.PathLike[str],
    tokenizer: Tokenizer,
    *,
    image_size: int | None = None,
    flip: bool = False,
    shifts: int = 0,
    skip_bad: bool = False,
    batch_size: int | None = None,
    device: str | torch.device = "cpu",
    workers: int | None = None,
    shard_size: int = SHARD_SIZE,
    tokenizer_source: str = "",
    share: tuple[int, int] = (0, 1),
    precision: str = "fp32",
    overwrite: bool = False,
) -> TokenCache | None:
    """Encode every image of ``source`` into a token cache at ``out``, or this process's share of them.

    Run again after an interruption, the same call resumes after the finished shards, once it has checked that their
    images are still what was encoded. Rows are in the source's order: all originals, with ``flip`` all mirrored copies,
    and the same again for each shift. The files do not depend on the number of processes.

    Args:
        source: anything that `open_images` reads.
        out, tokenizer: folder of the cache, and the tokenizer, on ``device`` already.
        image_size: side in pixels of the square that is encoded; the tokenizer's own by default.
        flip, shifts: add the mirrored copy, and so many shifted ones, of every image; see `ggm_image.data.copies`.
        skip_bad: leave out images that cannot be read; they are named in the manifest.
        batch_size: images a forward pass; `fitting_batch` by default.
        device, workers: where the tokenizer is, and decoding threads, one a core by default.
        shard_size: source items a shard; the shards of a stream are its parts.
        tokenizer_source: the name or path the tokenizer was loaded by, for decoding later.
        share: number of this process, and how many there are.
        precision: of the tokenizer's products, "fp32" or "bf16", which is faster and finds other codes for some cells.
        overwrite: replace a token cache of other images or settings; encode again the shards of changed images.

    Returns:
        The cache; None if other processes still have shards to write.

    Raises:
        UserError: nothing that was there before has been changed.
    """
    size = check_image_size(tokenizer, image_size)
    check_shifts(shifts, size)
    batch_size = fitting_batch(device, size) if batch_size is None else batch_size
    if batch_size < 1:
        raise UserError("batch size must be at least 1", batch_size, "use 64")
    if precision not in PRECISIONS:
        raise UserError("precision must be fp32 or bf16", precision, "leave it out for fp32")
    opened = _opened(source, Path(out), shard_size)
    manifest = _request(opened, tokenizer, size, flip, shifts, shard_size, tokenizer_source)
    if precision != "fp32":
        manifest.preprocessing["precision"] = precision
        tokenizer = deepcopy(tokenizer).to(memory_format=torch.channels_last)  # the caller's stays as it is
    writer = open_writer(Path(out), manifest, share, overwrite=overwrite)
    check_unchanged(writer, opened, overwrite=overwrite)
    encoder = _ShardEncoder(writer, tokenizer, batch_size, device, workers or default_workers(), skip_bad)
    return None if encoder.encode_pending(opened) else TokenCache.open(writer.folder)


def _opened(
    source: str | os.PathLike[str] | ImageSource | ImageStream, out: Path, shard_size: int
) -> ImageSource | ImageStream:
    if not isinstance(source, ImageSource | ImageStream):
        source = open_images(str(source), scratch=nearest_folder(out), shard_size=shard_size)
    if isinstance(source, ImageSource) and (out / "manifest.json").is_file():
        source.order_classes(Manifest.read(out).class_names)  # earlier versions put "10" before "2"
    return source


def open_writer(out: Path, manifest: Manifest, share: tuple[int, int], *, overwrite: bool) -> TokenCacheWriter:
    """The writer of a request; with ``overwrite`` a cache of another request is removed first."""
    if overwrite and (out / "manifest.json").is_file() and manifest.difference(Manifest.read(out)):
        discard_cache(out)
    return TokenCacheWriter(out, manifest, share)


@dataclass(frozen=True)
class _Encodable:
    """One image to be encoded: preprocessed, or why it cannot be read."""

    image: DecodedImage
    digest: bytes = NOTHING
    size: tuple[int, int] | None = None  # width and height of the original


class _ShardEncoder:
    """Turns the samples of one shard after the other into tokens."""

    def __init__(
        self,
        writer: TokenCacheWriter,
        tokenizer: Tokenizer,
        batch_size: int,
        device: str | torch.device,
        workers: int,
        skip_bad: bool,
    ) -> None:
        self.writer, self.tokenizer, self.batch_size, self.device = writer, tokenizer, batch_size, device
        self.workers, self.skip_bad = workers, skip_bad
        self.half = writer.manifest.preprocessing.get("precision") == "bf16"
        self.sizes: list[tuple[int, int]] = []
        self.ahead = 0 if torch.device(device).type == "cpu" else 2

    def encode_pending(self, source: ImageSource | ImageStream) -> int:
        """Write this process's shards that are not there yet; how many others still have to write."""
        manifest = self.writer.manifest
        try:
            units = list(self.writer.pending_units())
            if units and isinstance(source, ImageSource):
                say_reduction(some_sizes(source), self.tokenizer, manifest.image_size)
            for unit in units:
                self.encode(unit, source)
                if unit == units[0] and not isinstance(source, ImageSource):
                    say_reduction(self.sizes, self.tokenizer, manifest.image_size)
                    for note in source.notes:
                        say(f"note: {source.description}: {note}")
            return self.writer.finish()
        except BaseException:
            self.writer.discard_if_empty()
            raise

    def encode(self, unit: int, source: ImageSource | ImageStream) -> None:
        """Write the shard ``unit`` of a set of images, or what comes of part ``unit`` of a stream."""
        size, batches = self.writer.manifest.image_size, None
        if isinstance(source, ImageStream):
            part, samples = source.parts[unit], source.read(unit)
            copies = self.writer.manifest.copies  # a part is read once, for all of its shards
        else:
            items = self.writer.manifest.items_of(unit)
            part, samples = None, _samples(source, items, self.writer.manifest.copies)
            copies = (ORIGINAL,)  # the samples say themselves which copies they are
            batches = -(-len(items) // self.batch_size)
        skipped: list[dict[str, Any]] = []
        labels: list[int] = []
        keys: list[bytes] = []
        digests: list[bytes] = []
        state = state_of(source, self.writer.manifest, unit)  # before the files are read
        shards = self.writer.shards_of(unit)
        rows: list[list[Tensor]] = [[] for _ in shards]
        groups = decoded(
            samples, lambda sample: _encodable(sample, size), self.batch_size, workers=self.workers, ahead=self.ahead
        )
        label = f"shard {unit + 1}/{self.writer.manifest.parts or self.writer.manifest.shards_in_all}"
        for group, read in progress(groups, total=batches, unit="batch", label=label):
            good: list[Tensor] = []
            for sample, entry in zip(group, read, strict=True):
                image = entry.image
                digests.append(entry.digest)
                if entry.size is not None and len(self.sizes) < SIZES:
                    self.sizes.append(entry.size)
                if isinstance(image, Tensor):
                    good.append(image)
                    labels.append(sample.label)
                    keys.append(sample.key)
                elif self.skip_bad:
                    item = len(labels) + len(skipped) + (0 if part else items.start)
                    skipped.append({"item": item, "name": sample.name, "why": str(image)})
                else:
                    raise self._stop(image) from image
            if good:
                for found, copy in zip(rows, copies, strict=True):
                    images = [copy.apply(image) for image in good]
                    tokens = encode_batch(self.tokenizer, images, self.batch_size, self.device, half=self.half)
                    found.append(tokens.to(torch.int32))  # half of what a shard takes
        for shard, found in zip(shards, rows, strict=True):
            self.writer.write(
                torch.cat(found) if found else torch.zeros(0, *self.writer.manifest.grid, dtype=torch.int32),
                torch.tensor(labels, dtype=torch.int64),
                shard=shard,
                skipped=skipped,
                part=part,
                keys=None if part is None else np.frombuffer(b"".join(keys), np.uint8).reshape(-1, KEY_BYTES),
                digests=stacked(digests),
                state=state,
            )
            found.clear()

    def _stop(self, error: UserError) -> UserError:
        fix = f"{error.fix}, or leave such images out with --skip-bad"
        if any(entry is not None for entry in finished_shards(self.writer.folder, self.writer.manifest)):
            fix += "; the finished shards are kept; rerun the same command to resume"
        return UserError(error.what, error.got, fix)


def _samples(source: ImageSource, items: range, copies: Sequence[Copy]) -> Iterator[Sample]:
    """The items of a set that is read at random: all images as the first copy, then all as the next."""
    for item in items:
        copy, index = divmod(item, len(source))
        content = functools.partial(source.content, index)
        yield Sample(source.names[index], source.labels[index], content, copy=copies[copy])


def _encodable(sample: Sample, size: int) -> _Encodable:
    found = NOTHING
    try:
        content = sample.content()
        found = digest(content)
        image = open_image(content, name=sample.where or sample.name)
    except UserError as error:
        return _Encodable(error, found)
    original = int(image.shape[2]), int(image.shape[1])
    return _Encodable(sample.copy.apply(preprocess(image, size)), found, original)


def check_image_size(tokenizer: Tokenizer, image_size: int | None) -> int:
    """What was asked for, else the tokenizer's own; UserError if it does not fit the tokenizer's cells."""
    size = tokenizer.image_size if image_size is None else image_size
    if size > MAX_SIDE:
        raise UserError(f"image size must be at most {MAX_SIDE} pixels", size, "give a smaller --image-size")
    if size < tokenizer.downscale or size % tokenizer.downscale:
        raise UserError(
            f"image size must be a multiple of {tokenizer.downscale} pixels for tokenizer {tokenizer.name}",
            size,
            f"use --image-size {max(1, round(size / tokenizer.downscale)) * tokenizer.downscale}",
        )
    return size


def nearest_folder(path: Path) -> Path:
    """The nearest folder above ``path`` that exists: on the disk that will hold the output."""
    return next((folder for folder in path.absolute().parents if folder.is_dir()), Path.cwd())


def _request(
    source: ImageSource | ImageStream,
    tokenizer: Tokenizer,
    size: int,
    flip: bool,
    shifts: int,
    shard_size: int,
    found: str,
) -> Manifest:
    cells = size // tokenizer.downscale
    # The number of images in a stream is not known until it has been read, so the request counts parts instead.
    if isinstance(source, ImageStream):
        order, items, parts = "by part, then as it comes", 0, len(source.parts)
        facts: dict[str, Any] = {"parts": parts, "classes": len(source.class_names)}
    else:
        order, items, parts = "by class, then by name", len(source) * len(copies_of(flip, shifts)), 0
        facts = {"images": len(source)}
    # `shifts` is left out where it is 0, so that caches of versions without it still match the request.
    made = {"size": size, "flip": flip, **({"shifts": shifts} if shifts else {})}
    return Manifest(
        tokenizer_name=tokenizer.name,
        tokenizer_sha256=tokenizer.sha256,
        tokenizer_source=found,
        codebook_size=tokenizer.codebook_size,
        grid=(cells, cells),
        image_size=size,
        class_names=source.class_names,
        preprocessing={**PREPROCESSING, **made, "order": order_of(flip, shifts) or order},
        source={"path": source.description, **facts, "sha256": source.fingerprint()},
        items=items,
        shard_size=shard_size,
        parts=parts,
        made_with={name: metadata.version(name) for name in ("torch", "torchvision", "pillow")},
    )
