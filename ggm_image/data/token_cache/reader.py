"""A folder of tokens: ``manifest.json`` and ``tokens-00000.safetensors ...``, written shard by shard.

Each shard holds ``tokens`` uint16 (n, H, W) and ``labels`` int32 (n,), of a stream also ``keys`` uint8 (n, 16), and
``digests`` uint8 (items, 16) of the images' files; it is whole or not there. The manifest names the shards with their
SHA-256 and says ``"complete": true`` only at the end; an interrupted run resumes after the shards that are finished.
Reading maps the files and copies the rows that are wanted.
"""

import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Int32, UInt8, UInt16
from torch import Tensor

from ggm_image.data.token_cache.manifest import Manifest, Shard, finished_shards
from ggm_image.errors import UserError
from ggm_image.io.files import is_temporary, sha256_file

_OURS = re.compile(r"manifest\.json|tokens-\d{5,}\.(safetensors|json)|report\.(json|png)|worst\.png")


def discard_cache(folder: str | Path) -> None:
    """Remove a token cache from a folder; files of others stay."""
    for path in Path(folder).iterdir():
        if _OURS.fullmatch(path.name) or is_temporary(path.name):
            path.unlink(missing_ok=True)


class TokenCache:
    """A finished token cache, read through memory maps."""

    def __init__(self, folder: str | Path, manifest: Manifest, shards: list[tuple[np.ndarray, np.ndarray]]) -> None:
        self.folder, self.manifest = Path(folder), manifest
        self._shards = shards
        self._ends = np.cumsum([len(labels) for _, labels in shards], dtype=np.int64)

    @classmethod
    def open(cls, folder: str | Path) -> "TokenCache":
        """Map the cache in ``folder``."""
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError("token cache does not exist", folder, "check the path")
        manifest = Manifest.read(folder)
        if not manifest.complete:
            unfinished = finished_shards(folder, manifest).count(None)
            raise UserError(
                "token cache is not finished",
                f"{folder}: {manifest.shards_in_all - unfinished} of {manifest.shards_in_all} shards",
                "rerun the same ggm-image encode command to resume",
            )
        return cls(folder, manifest, [_map_shard(folder, manifest, shard) for shard in manifest.shards])

    def __len__(self) -> int:
        return self.manifest.count

    def _gather(self, which: int, indices: Tensor | np.ndarray | Sequence[int]) -> np.ndarray:
        rows = np.atleast_1d(np.asarray(indices, dtype=np.int64))
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"rows must lie in [0, {len(self)}), got {rows.min()} to {rows.max()}")
        shard_of = np.searchsorted(self._ends, rows, side="right")
        shape = (len(rows), *self.manifest.grid) if which == 0 else (len(rows),)
        result = np.empty(shape, dtype=np.int64)
        for k in np.unique(shard_of):
            here = shard_of == k
            start = self._ends[k - 1] if k else 0
            result[here] = self._shards[k][which][rows[here] - start]
        return result

    def tokens(self, indices: Tensor | np.ndarray | Sequence[int]) -> Int[Tensor, "n h w"]:
        """Tokens of the given rows, int64 in [0, codebook_size)."""
        tokens = torch.from_numpy(self._gather(0, indices))
        check_tokens(tokens, self.manifest.codebook_size)
        return tokens

    def labels(self, indices: Tensor | np.ndarray | Sequence[int]) -> Int[Tensor, " n"]:
        """Labels of the given rows, int64; -1 where the source had no classes."""
        return torch.from_numpy(self._gather(1, indices))

    def shard(self, number: int) -> tuple[UInt16[np.ndarray, "n h w"], Int32[np.ndarray, " n"]]:
        """One shard's tokens and labels as they lie on disk."""
        return self._shards[number]

    def keys(self, number: int) -> UInt8[np.ndarray, "n 16"]:
        """One shard's digests of its rows' keys; only a stream has them."""
        shard = self.manifest.shards[number]
        return _map_arrays(self.folder / shard["file"], {"keys": ("U8", [shard["count"], 16])})["keys"]

    def arrays(self, number: int, wanted: dict[str, tuple[str, list[int]]]) -> dict[str, np.ndarray]:
        """Further arrays of one shard by name, each of a given kind and shape, such as ``("I64", [3])``."""
        return _map_arrays(self.folder / self.manifest.shards[number]["file"], wanted)

    def load(self) -> tuple[Int[Tensor, "count h w"], Int[Tensor, " count"]]:
        """All tokens (int32) and labels (int64) in memory, for caches that fit."""
        tokens = np.empty((len(self), *self.manifest.grid), dtype=np.int32)
        for (shard, _), end in zip(self._shards, self._ends, strict=True):
            tokens[end - len(shard) : end] = shard
        whole = torch.from_numpy(tokens)
        check_tokens(whole, self.manifest.codebook_size)
        return whole, self.labels(np.arange(len(self)))

    def verify(self) -> None:
        """Read every shard again and compare its SHA-256; raises UserError at the first that differs."""
        for shard in self.manifest.shards:
            if sha256_file(self.folder / shard["file"]) != shard["sha256"]:
                raise UserError("shard is damaged", self.folder / shard["file"], "remove the cache and encode it again")


def check_tokens(tokens: Int[Tensor, "..."], codebook_size: int) -> None:
    """Raise UserError unless every token lies in [0, codebook_size)."""
    if tokens.numel() == 0:
        return
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= codebook_size:
        got = f"max {high}" if high >= codebook_size else f"min {low}"
        raise UserError(
            f"tokens must lie in [0, {codebook_size})", f"got {got}", "was this set encoded with another tokenizer?"
        )


_REMEDY = "remove the cache and encode it again"
_DTYPES: dict[str, Any] = {"U16": np.dtype("<u2"), "I32": np.dtype("<i4"), "I64": np.dtype("<i8"), "U8": np.dtype("u1")}


def _map_shard(folder: Path, manifest: Manifest, shard: Shard) -> tuple[np.ndarray, np.ndarray]:
    path, n = folder / str(shard["file"]), shard["count"]
    if path.parent != folder or not os.path.isfile(path):  # Path's raises where a name is too long
        raise UserError("shard of the token cache is missing", path, _REMEDY)
    maps = _map_arrays(path, {"tokens": ("U16", [n, *manifest.grid]), "labels": ("I32", [n])})
    labels, classes = maps["labels"], len(manifest.class_names)
    if n and not -1 <= labels.min() <= labels.max() < classes:
        got = f"{path}: {labels.min()} to {labels.max()}"
        raise UserError(f"labels must lie in [0, {classes}), or be -1", got, _REMEDY)
    return maps["tokens"], labels


def _map_arrays(path: Path, wanted: dict[str, tuple[str, list[int]]]) -> dict[str, np.ndarray]:
    """Arrays of a shard by name, each of a given kind and shape."""
    maps = {}
    try:
        # A safetensors file: 8 bytes of header length, the JSON header, then the arrays as in memory.
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, 1 << 20)))
        end = max((array["data_offsets"][1] for name, array in header.items() if name != "__metadata__"), default=0)
        if 8 + length + end > path.stat().st_size:
            raise ValueError("it is cut off")
        for name, (kind, shape) in wanted.items():
            entry, dtype = header[name], _DTYPES[kind]
            if (entry["dtype"], entry["shape"]) != (kind, shape):
                raise ValueError(f"{name} is {entry['dtype']} {entry['shape']}, the manifest says {kind} {shape}")
            offset, end = entry["data_offsets"]
            if end - offset != math.prod(shape) * dtype.itemsize or 8 + length + end > path.stat().st_size:
                raise ValueError(f"{name} is cut off")
            if offset < 0:
                raise ValueError(f"{name} begins before the data")
            place = 8 + length + offset
            maps[name] = np.memmap(path, dtype, "r", place, tuple(shape)) if shape[0] else np.empty(shape, dtype)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError("shard of the token cache cannot be read", f"{path}: {error}", _REMEDY) from error
    return maps
