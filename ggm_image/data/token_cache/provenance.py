"""Check that a source still holds the images that a token cache was encoded from, by size and time, then by content.

Every shard keeps a digest of each image's file, taken while it was read for encoding. For each
shard, the manifest has a digest of the sizes and modification times of those files. Files are only read again if that
digest differs.
"""

import functools
import hashlib
from collections.abc import Callable, Iterator
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from ggm_image.data.sources.base import ImageStream
from ggm_image.data.sources.image_files import ImageSource
from ggm_image.data.token_cache.manifest import Manifest, finished_shard, shard_file, state_of_shard
from ggm_image.data.token_cache.writer import TokenCacheWriter
from ggm_image.errors import UserError

DIGEST_BYTES = 16
NOTHING = bytes(DIGEST_BYTES)  # the digest of an image whose file cannot be read
SHOWN = 3  # names of changed images in an error


def digest(content: bytes) -> bytes:
    """A digest of an image's file."""
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()


def stacked(digests: list[bytes]) -> UInt8[np.ndarray, "n 16"]:
    """Digests as they lie in a shard."""
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, DIGEST_BYTES)


def state_of(source: ImageSource | ImageStream, manifest: Manifest, unit: int) -> str:
    """A digest of the sizes and modification times of the files that a shard is made of.

    Args:
        unit: number of the shard, of a stream of its part.

    Returns:
        64 hexadecimal digits; empty where a file has no size and time, because it comes over a network.
    """
    if isinstance(source, ImageStream):
        states = [source.state(unit)]
    else:
        states = [source.state(item % len(source)) for item in manifest.items_of(unit)]
    total = hashlib.sha256()
    for state in states:
        if state is None:
            return ""
        total.update(b"%d %d\n" % state)
    return total.hexdigest()


def changed(folder: Path, manifest: Manifest, unit: int, source: ImageSource | ImageStream) -> Iterator[str]:
    """Read the images of one shard again; yields the names of those that are not what was encoded.

    A change of an image's file, its name, its label, or its place counts. Of a cache made before contents were
    recorded, nothing is yielded; see `records_content`.
    """
    arrays = _arrays(folder / shard_file(unit))
    digests = arrays.get("digests")
    if digests is None:
        return
    # The names and order of a source with random access are in its fingerprint, so only contents are compared here.
    if isinstance(source, ImageSource):
        for item, known in zip(manifest.items_of(unit), digests, strict=False):
            index = item % len(source)
            if _digest_of(functools.partial(source.content, index)) != known.tobytes():
                yield source.names[index]
        return
    # Skipped images have a digest but no row, hence no key or label.
    entry = finished_shard(folder, manifest, unit)
    skipped = set() if entry is None else {skip["item"] for skip in entry["skipped"]}
    rows = iter(zip(arrays["keys"], arrays["labels"].tolist(), strict=True))
    for k, (sample, known) in enumerate(zip_longest(source.read(unit), digests)):
        # One side is longer: all later images are shifted, so comparing them would only repeat this.
        if sample is None or known is None:
            yield f"{source.parts[unit]}: {'an image is missing' if sample is None else sample.name}"
            return
        is_same = _digest_of(sample.content) == known.tobytes()
        if k not in skipped:
            key, label = next(rows)
            is_same &= (sample.key, sample.label) == (key.tobytes(), label)
        if not is_same:
            yield f"{source.parts[unit]}: {sample.name}"


def records_content(folder: Path, unit: int) -> bool:
    """Whether a shard says of what content it was made: caches of earlier versions do not."""
    return "digests" in _arrays(folder / shard_file(unit))


def counted(names: Iterator[str]) -> tuple[int, str]:
    """How many different names there are, and the first of them to show; copies share the image's name."""
    some = list(dict.fromkeys(names))
    count, some = len(some), some[:SHOWN]
    return count, ", ".join(some) + (" ..." if count > len(some) else "")


def _arrays(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            there = set(file.keys())
            return {name: file.get_tensor(name) for name in ("digests", "keys", "labels") if name in there}
    except (OSError, SafetensorError) as error:
        raise UserError("shard of the token cache cannot be read", f"{path}: {error}", "encode again") from error


def _digest_of(content: Callable[[], bytes]) -> bytes:
    try:
        return digest(content())
    except UserError:
        return NOTHING


def check_unchanged(writer: TokenCacheWriter, source: ImageSource | ImageStream, *, overwrite: bool) -> None:
    """Compare the finished shards of this process with their source; drop those that differ, or raise UserError."""
    folder, manifest = writer.folder, writer.manifest
    differing: list[Iterator[str]] = []
    for unit in list(writer.finished_units()):
        if (state := state_of(source, manifest, unit)) and state == state_of_shard(folder, manifest, unit):
            continue
        if not state and not state_of_shard(folder, manifest, unit):
            continue  # what comes over a network would have to be read again in full; --verify does
        names = changed(folder, manifest, unit, source)
        first = next(names, None)
        if first is not None and overwrite:
            writer.drop(unit)
        elif first is not None:
            differing.append(chain([first], names))
    if differing:
        count, some = counted(chain.from_iterable(differing))
        raise UserError(
            "images have changed since they were encoded",
            f"{folder}: {count}, {some}",
            "encode to another folder, or add --overwrite to encode their shards again",
        )
