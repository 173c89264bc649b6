"""Pictures to a token cache, and a token cache back to pictures."""

import contextlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from ggm_image.data.images import (
    PREPROCESSING,
    ImageSource,
    open_source,
    preprocess,
    to_model,
    to_pil,
    to_uint8,
)
from ggm_image.data.token_cache import SHARD_SIZE, Manifest, TokenCache, TokenCacheWriter
from ggm_image.errors import UserError
from ggm_image.files import atomic_folder, progress
from ggm_image.tokenizers import registry
from ggm_image.tokenizers.base import Tokenizer

Picture = Tensor | UserError


def default_workers() -> int:
    """Threads that decode pictures: one a core that this process may use, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, max(2, cores))


@contextlib.contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Without gradients and without TF32 in convolutions and products: indices must not depend on the GPU."""
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products


class Prefetch:
    """Preprocessed pictures of a source, decoded by threads some batches ahead.

    Args:
        source: where the pictures come from.
        image_size: side in pixels of what is returned.
        workers: number of threads.
        flip: item ``i`` in ``[N, 2 N)`` is picture ``i - N`` mirrored.
        ahead: batches decoded in advance. 0 where the tokenizer runs on the same cores: decoding would take them
            from the threads of a product, and all of these wait for the slowest.
    """

    def __init__(
        self, source: ImageSource, image_size: int, *, workers: int, flip: bool = False, ahead: int = 2
    ) -> None:
        self.source, self.image_size, self.flip = source, image_size, flip
        self.workers, self.ahead = workers, ahead

    def __len__(self) -> int:
        return len(self.source) * (2 if self.flip else 1)

    def picture(self, item: int) -> Picture:
        """One item, or the error that says why it cannot be read."""
        index = item % len(self.source)
        try:
            image = preprocess(self.source[index], self.image_size)
        except UserError as error:
            return error
        return image.flip(-1) if item >= len(self.source) else image

    def batches(self, items: Sequence[int], batch_size: int) -> Iterator[tuple[Sequence[int], list[Picture]]]:
        """Consecutive groups of ``items`` with their pictures, in order."""
        # Small chunks keep all threads busy inside one batch.
        chunk = max(1, min(64, -(-batch_size // self.workers)))
        groups = (items[k : k + batch_size] for k in range(0, len(items), batch_size))
        waiting: deque[tuple[Sequence[int], list[Future[list[Picture]]]]] = deque()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="decode")
        try:
            for group in groups:
                parts = [group[k : k + chunk] for k in range(0, len(group), chunk)]
                waiting.append((group, [pool.submit(self._pictures, part) for part in parts]))
                if len(waiting) > self.ahead:
                    yield self._collect(waiting.popleft())
            while waiting:
                yield self._collect(waiting.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _pictures(self, items: Sequence[int]) -> list[Picture]:
        return [self.picture(item) for item in items]

    @staticmethod
    def _collect(
        entry: tuple[Sequence[int], list[Future[list[Picture]]]],
    ) -> tuple[Sequence[int], list[Picture]]:
        group, futures = entry
        return group, [picture for future in futures for picture in future.result()]


def encode_batch(
    tokenizer: Tokenizer,
    images: Sequence[UInt8[Tensor, "3 h w"]],
    batch_size: int,
    device: str | torch.device,
) -> Int[Tensor, "n rows columns"]:
    """Tokens of at most ``batch_size`` pictures, computed in a batch of exactly that size.

    Kernels choose their order of summation by the batch size, so a smaller last batch is padded: a
    picture's tokens do not depend on how many others came with it.
    """
    batch = torch.zeros(batch_size, *images[0].shape, dtype=torch.uint8)
    torch.stack(list(images), out=batch[: len(images)])
    with exact_arithmetic():
        return tokenizer.encode(to_model(batch.to(device, non_blocking=True)))[: len(images)].cpu()


def encode(
    source: str | os.PathLike[str] | ImageSource,
    out: str | os.PathLike[str],
    tokenizer: Tokenizer,
    *,
    image_size: int | None = None,
    flip: bool = False,
    skip_bad: bool = False,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    workers: int | None = None,
    shard_size: int = SHARD_SIZE,
    tokenizer_source: str = "",
) -> TokenCache:
    """Encode every picture of ``source`` into a token cache at ``out``.

    Run again after an interruption, the same call goes on after the last finished shard. Rows are in the
    source's order; with ``flip`` all originals come first, then all mirrored copies.

    Args:
        source: whatever `open_source` reads.
        out: folder of the cache.
        tokenizer: on ``device`` already.
        image_size: side in pixels of the square that is encoded; the tokenizer's own by default.
        flip: add the mirrored copy of every picture.
        skip_bad: leave out pictures that cannot be read; they are named in the manifest.
        batch_size: pictures a forward pass.
        device: where the tokenizer is.
        workers: decoding threads; one a core by default.
        shard_size: source items a shard.
        tokenizer_source: the name or path the tokenizer was loaded by, for decoding later.

    Raises:
        UserError: no pictures, a picture that cannot be read, an image size that the tokenizer cannot
            encode, or a folder that holds something else. Nothing that was there before is changed.
    """
    size = check_image_size(tokenizer, image_size)
    if batch_size < 1:
        raise UserError("batch size must be at least 1", batch_size, "use 64")
    out = Path(out)
    if not isinstance(source, ImageSource):
        source = open_source(source, scratch=nearest_folder(out))
    ahead = 0 if torch.device(device).type == "cpu" else 2
    prefetch = Prefetch(source, size, workers=workers or default_workers(), flip=flip, ahead=ahead)
    manifest = _request(source, tokenizer, size, flip, shard_size, len(prefetch), tokenizer_source)
    writer = TokenCacheWriter(out, manifest)
    labels = torch.tensor(source.labels, dtype=torch.int64).repeat(2 if flip else 1)
    try:
        for items in writer.pending():
            _encode_shard(writer, prefetch, items, labels, tokenizer, batch_size, device, skip_bad)
        if manifest.count == 0:
            raise UserError("none of the pictures can be read", source.description, "check what the files are")
    except BaseException:
        writer.discard_if_empty()
        raise
    writer.finish()
    return TokenCache.open(out)


def _encode_shard(
    writer: TokenCacheWriter,
    prefetch: Prefetch,
    items: range,
    labels: Tensor,
    tokenizer: Tokenizer,
    batch_size: int,
    device: str | torch.device,
    skip_bad: bool,
) -> None:
    kept: list[int] = []
    skipped: list[dict[str, Any]] = []
    rows: list[Tensor] = []
    label = f"shard {len(writer.manifest.shards) + 1}/{-(-len(prefetch) // writer.manifest.shard_size)}"
    batches = prefetch.batches(items, batch_size)
    for group, pictures in progress(batches, total=-(-len(items) // batch_size), unit="batch", label=label):
        good: list[Tensor] = []
        for item, picture in zip(group, pictures, strict=True):
            if isinstance(picture, Tensor):
                good.append(picture)
                kept.append(item)
            elif skip_bad:
                name = prefetch.source.names[item % len(prefetch.source)]
                skipped.append({"item": item, "name": name, "why": str(picture)})
            else:
                fix = f"{picture.fix}, or leave such pictures out with --skip-bad"
                if writer.manifest.shards:
                    fix += "; the finished shards are kept, the same command goes on after them"
                raise UserError(picture.what, picture.got, fix) from picture
        if good:
            rows.append(encode_batch(tokenizer, good, batch_size, device))
    tokens = torch.cat(rows) if rows else torch.zeros(0, *writer.manifest.grid, dtype=torch.int64)
    writer.write(tokens, labels[kept], skipped=skipped)


def decode_batch(
    tokenizer: Tokenizer, tokens: Int[Tensor, "n rows columns"], batch_size: int, device: str | torch.device
) -> UInt8[Tensor, "n 3 h w"]:
    """Pictures of at most ``batch_size`` token grids, computed in a batch of exactly that size."""
    batch = tokens.new_zeros(batch_size, *tokens.shape[1:])
    batch[: len(tokens)] = tokens
    with exact_arithmetic():
        return to_uint8(tokenizer.decode(batch.to(device)))[: len(tokens)].cpu()


def check_tokenizer(cache: TokenCache, tokenizer: Tokenizer) -> None:
    """Raise UserError unless ``tokenizer`` made the tokens of ``cache``."""
    manifest = cache.manifest
    if tokenizer.sha256 != manifest.tokenizer_sha256:
        raise UserError(
            "token cache must be decoded with the tokenizer that made it",
            f"made with {manifest.tokenizer_name} {manifest.tokenizer_sha256[:12]}, "
            f"got {tokenizer.name} {tokenizer.sha256[:12]}",
            "point --tokenizer to the right one",
        )


def tokenizer_of(manifest: Manifest) -> str:
    """Name or path of the tokenizer that a cache names: first where it was found then, then by its name."""
    if manifest.tokenizer_source and Path(manifest.tokenizer_source).exists():
        return manifest.tokenizer_source
    if manifest.tokenizer_name in {spec.name for spec in registry.tokenizer_specs()}:
        return manifest.tokenizer_name
    raise UserError(
        "the tokenizer of this cache is not at hand",
        f"{manifest.tokenizer_name}, then at {manifest.tokenizer_source or 'an unnamed place'}",
        "point --tokenizer to its folder or file",
    )


def decode(
    cache: TokenCache,
    out: str | os.PathLike[str],
    tokenizer: Tokenizer,
    *,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
) -> int:
    """Write every row of ``cache`` as ``000000.png ...``, in class folders where the cache has classes.

    The folder is whole or not there: it is filled under a temporary name.

    Args:
        cache: the tokens.
        out: a folder that does not exist or is empty.
        tokenizer: the one that made the tokens, on ``device`` already.
        batch_size: grids a forward pass.
        device: where the tokenizer is.

    Returns:
        The number of pictures.

    Raises:
        UserError: another tokenizer, a folder that is not empty, or a class name that is no folder name.
    """
    check_tokenizer(cache, tokenizer)
    names = cache.manifest.class_names
    for name in names:
        if name in ("", ".", "..") or any(c in name for c in "/\\\0"):
            raise UserError("class names must be folder names", repr(name), "mend class_names in manifest.json")
    starts = range(0, len(cache), batch_size)
    with atomic_folder(out) as folder:
        for start in progress(starts, total=len(starts), unit="batch", label="decode"):
            rows = range(start, min(start + batch_size, len(cache)))
            pictures = decode_batch(tokenizer, cache.tokens(rows), batch_size, device)
            for row, label, picture in zip(rows, cache.labels(rows).tolist(), pictures, strict=True):
                place = folder / names[label] if 0 <= label < len(names) else folder
                place.mkdir(exist_ok=True)
                # Not save_png: the folder as a whole is what must be atomic.
                to_pil(picture).save(place / f"{row:06d}.png")
    return len(cache)


def check_image_size(tokenizer: Tokenizer, image_size: int | None) -> int:
    """What was asked for, else the tokenizer's own; UserError if it does not fit the tokenizer's cells."""
    size = tokenizer.image_size if image_size is None else image_size
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
    source: ImageSource, tokenizer: Tokenizer, size: int, flip: bool, shard_size: int, items: int, found: str
) -> Manifest:
    cells = size // tokenizer.downscale
    order = "all originals, then all mirrored copies" if flip else "by class, then by name"
    return Manifest(
        tokenizer_name=tokenizer.name,
        tokenizer_sha256=tokenizer.sha256,
        tokenizer_source=found,
        codebook_size=tokenizer.codebook_size,
        grid=(cells, cells),
        image_size=size,
        class_names=source.class_names,
        preprocessing={**PREPROCESSING, "size": size, "flip": flip, "order": order},
        source={"path": source.description, "images": len(source), "sha256": source.fingerprint()},
        items=items,
        shard_size=shard_size,
        made_with={name: metadata.version(name) for name in ("torch", "torchvision", "pillow")},
    )
