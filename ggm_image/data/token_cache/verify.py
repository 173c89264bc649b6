"""Verify a token cache: shards are intact, each item occurs once, and all tokens and labels are in range."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ggm_image.data.sources.base import KEY_BYTES, ImageStream
from ggm_image.data.sources.image_files import ImageSource
from ggm_image.data.token_cache.manifest import shard_file
from ggm_image.data.token_cache.provenance import changed, counted, records_content
from ggm_image.data.token_cache.reader import TokenCache, check_tokens
from ggm_image.errors import UserError
from ggm_image.io.files import sha256_file
from ggm_image.runtime.progress import progress

KEYS_AT_ONCE = 1 << 20  # 16 MiB of digests in memory, however many rows there are
_KEYS = "give every sample a key of its own over all parts, and encode again"
_REMEDY = "remove the cache and encode it again"


def verify(folder: str | Path, source: ImageSource | ImageStream | None = None) -> dict[str, Any]:
    """Read a finished cache from end to end and compare it with itself, and with its source.

    Proven are: the SHA-256 of every shard; the count of every shard and of all; that the shards cover the items one
    after the other, each item in one row or among those that were skipped; of a stream, that no key is in two rows;
    that tokens lie in the codebook and labels in the classes. With ``source``, which is read from end to end: that it
    has the same images, or parts, with the same names and labels, and that every image's file is the one that was
    encoded.

    Returns:
        ``count``, ``skipped``, ``items``, ``shards``; ``distinct``: what was compared to find duplicates; and
        ``content``: whether the images of the source were compared. They are not without a source, nor for a cache of
        an earlier version, which did not record them.
    """
    cache = TokenCache.open(folder)
    manifest = cache.manifest
    _check_counts(cache)
    if source is not None:
        if isinstance(source, ImageSource):
            source.order_classes(manifest.class_names)
        _check_source(cache, source)
    # A hash proves the file; the ranges prove that what was written was right.
    shards = progress(range(len(manifest.shards)), total=len(manifest.shards), unit="shard", label="verify")
    for shard in shards:
        path = cache.folder / shard_file(shard)
        if sha256_file(path) != manifest.shards[shard]["sha256"]:
            raise UserError("shard is damaged", path, _REMEDY)
        try:
            check_tokens(torch.from_numpy(cache.shard(shard)[0].astype(np.int32)), manifest.codebook_size)
        except UserError as error:
            raise UserError(error.what, f"{path}: {error.got}", error.fix) from error
        _check_labels(cache, shard, source)
    if manifest.parts:
        _check_keys(cache)
    is_compared = source is not None and _check_content(cache, source)
    return {
        "count": manifest.count,
        "skipped": len(manifest.skipped()),
        "items": manifest.items,
        "shards": len(manifest.shards),
        "distinct": "keys" if manifest.parts else "items",
        "content": is_compared,
    }


def _check_counts(cache: TokenCache) -> None:
    manifest, folder = cache.manifest, cache.folder
    if len(manifest.shards) != manifest.shards_in_all:
        got = f"{folder}: {len(manifest.shards)} of {manifest.shards_in_all}"
        raise UserError("manifest must name every shard", got, _REMEDY)
    skipped = [entry["item"] for entry in manifest.skipped()]
    if len(set(skipped)) != len(skipped):
        raise UserError("item is skipped twice", folder, _REMEDY)
    taken = 0
    for number, (shard, items) in enumerate(zip(manifest.shards, manifest.items_by_shard(), strict=True)):
        inside = sum(item in items for item in skipped[taken : taken + len(shard["skipped"])])
        taken += len(shard["skipped"])
        if shard["file"] != shard_file(number) or inside != len(shard["skipped"]):
            raise UserError("shard must hold its own items", f"{folder}: {shard['file']}", _REMEDY)
        if shard["count"] + inside != len(items):
            got = f"{folder / shard['file']}: {shard['count']} rows and {inside} skipped of {len(items)} items"
            raise UserError("every item must be in one row or be skipped", got, _REMEDY)
    rows = sum(shard["count"] for shard in manifest.shards)
    if manifest.count != rows or rows + len(skipped) != manifest.items:
        got = f"{folder}: count {manifest.count}, {rows} rows, {len(skipped)} skipped, {manifest.items} items"
        raise UserError("counts must agree", got, _REMEDY)


def _check_source(cache: TokenCache, source: ImageSource | ImageStream) -> None:
    known = cache.manifest.source
    kind = "parts" if isinstance(source, ImageStream) else "images"
    ours = len(source.parts) if isinstance(source, ImageStream) else len(source)
    if known.get(kind) != ours:
        got = f"{cache.folder}: {known.get(kind, 'no')} {kind}, the source has {ours}"
        raise UserError("cache must hold what its source holds", got, "encode it again to another folder")
    if known["sha256"] != source.fingerprint():
        fix = "give the source that was encoded, with the same --label-key"
        raise UserError("cache is not of this source: names or labels differ", source.description, fix)


def _check_labels(cache: TokenCache, shard: int, source: ImageSource | ImageStream | None) -> None:
    """Those in the cache are in range, or it would not have opened; UserError where they are not the source's."""
    if isinstance(source, ImageSource):
        skipped = {entry["item"] for entry in cache.manifest.shards[shard]["skipped"]}
        wanted = [source.labels[k % len(source)] for k in cache.manifest.items_of(shard) if k not in skipped]
        if wanted != cache.shard(shard)[1].tolist():
            raise UserError("labels must be those of the source", cache.folder / shard_file(shard), _REMEDY)


def _check_content(cache: TokenCache, source: ImageSource | ImageStream) -> bool:
    """Whether the images could be compared; UserError where they are not what was encoded."""
    manifest = cache.manifest
    units = range(manifest.parts or manifest.shards_in_all)
    if not all(records_content(cache.folder, unit) for unit in units):
        return False
    shards = progress(units, total=len(units), unit="shard", label="compare")
    count, some = counted(name for unit in shards for name in changed(cache.folder, manifest, unit, source))
    if count:
        fix = "encode again with --overwrite, or to another folder"
        raise UserError("images are not those that were encoded", f"{cache.folder}: {count}, {some}", fix)
    return True


def _check_keys(cache: TokenCache) -> None:
    """No key in two rows; copies have those of their originals. In rounds, so that memory stays small."""
    manifest = cache.manifest
    for shard in range(manifest.parts, len(manifest.shards)):
        if not np.array_equal(cache.keys(shard), cache.keys(shard % manifest.parts)):
            got = f"{cache.folder / shard_file(shard)}"
            raise UserError("copies must be those of their originals", got, _REMEDY)
    originals = manifest.shards[: manifest.parts]
    rounds = -(-sum(shard["count"] for shard in originals) // KEYS_AT_ONCE)
    for turn in range(rounds):
        found = []
        for shard in range(manifest.parts):
            keys = cache.keys(shard)
            # Digests are even: any of their bytes divide them into equal rounds.
            found.append(keys[keys[:, :4].copy().view("<u4")[:, 0] % rounds == turn].copy())
        whole = np.concatenate(found).view(f"V{KEY_BYTES}")[:, 0]
        ordered = np.sort(whole.view([("high", ">u8"), ("low", ">u8")]), order=("high", "low"))
        twice = np.flatnonzero(ordered[1:] == ordered[:-1])
        if len(twice):
            raise UserError("no key may be in two rows", _where(cache, ordered[twice[0]].tobytes()), _KEYS)


def _where(cache: TokenCache, key: bytes) -> str:
    places = []
    for number, shard in enumerate(cache.manifest.shards[: cache.manifest.parts]):
        rows = np.flatnonzero((cache.keys(number) == np.frombuffer(key, np.uint8)).all(axis=1))
        places += [f"row {row} of {shard['part']}" for row in rows.tolist()]
    return " and ".join(places)
