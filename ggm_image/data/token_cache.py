"""A folder of tokens: ``manifest.json`` and ``tokens-00000.safetensors ...``, written shard by shard.

Each shard holds ``tokens`` uint16 (n, H, W) and ``labels`` int32 (n,) and is whole or not there. The manifest
names the shards that are finished, with their SHA-256, so that an interrupted run goes on after them; it says
``"complete": true`` only at the end. Reading maps the files and copies the rows that are asked for.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.files import atomic_path, disk_errors, remove_temporaries, sha256_file, write_json

FORMAT_VERSION = 1
SHARD_SIZE = 10_000
_PROGRESS_FIELDS = ("count", "complete", "shards", "made_with")


@dataclass(kw_only=True)
class Manifest:
    """What a token cache says of itself.

    Attributes:
        tokenizer_name: name of the tokenizer.
        tokenizer_sha256: SHA-256 of its weights.
        codebook_size: V; every token lies in [0, V).
        grid: rows and columns of tokens.
        image_size: side in pixels of the pictures that were encoded.
        class_names: one name a label; empty where every label is -1.
        preprocessing: what was done to the pictures before encoding, ``flip`` included.
        source: ``path``, number of ``images`` and ``sha256`` of their names and labels.
        tokenizer_source: the name or path by which the tokenizer was loaded.
        shard_size: source items a shard.
        items: source items in all; ``count`` is less where pictures were skipped.
        made_with: versions of the libraries that decoded and encoded.
        count: rows in the finished shards.
        complete: whether all shards are there.
        shards: ``file``, ``count``, ``sha256`` and ``skipped`` of each finished shard, by shard number.
    """

    tokenizer_name: str
    tokenizer_sha256: str
    codebook_size: int
    grid: tuple[int, int]
    image_size: int
    class_names: list[str]
    preprocessing: dict[str, Any]
    source: dict[str, Any]
    items: int
    tokenizer_source: str = ""
    shard_size: int = SHARD_SIZE
    made_with: dict[str, str] = field(default_factory=dict)
    count: int = 0
    complete: bool = False
    shards: list[dict[str, Any]] = field(default_factory=list)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        self.grid = (int(self.grid[0]), int(self.grid[1]))
        if not 1 <= self.codebook_size <= 1 << 16:
            raise UserError("codebook size must lie in [1, 65536]", self.codebook_size, "tokens are stored in 16 bits")
        if self.shard_size < 1:
            raise UserError("shard size must be at least 1", self.shard_size, "use the default of 10000")

    @classmethod
    def read(cls, folder: str | Path) -> "Manifest":
        """The manifest of a cache, finished or not."""
        path = Path(folder) / "manifest.json"
        remedy = "make one with ggm-image encode SRC OUT --tokenizer NAME"
        if not path.is_file():
            raise UserError("not a token cache: it has no manifest.json", folder, remedy)
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError("manifest cannot be read", f"{path}: {error}", remedy) from error
        known = {f.name for f in fields(cls)}
        required = known - {"tokenizer_source", "shard_size", "made_with"}
        if not isinstance(values, dict) or not required <= set(values):
            missing = sorted(required - set(values)) if isinstance(values, dict) else "no table"
            raise UserError("manifest is not that of a token cache", f"{path}: without {missing}", remedy)
        if values["format_version"] != FORMAT_VERSION:
            raise UserError(
                f"token cache must have format version {FORMAT_VERSION}",
                values["format_version"],
                "encode it again",
            )
        return cls(**{name: value for name, value in values.items() if name in known})

    def request(self) -> dict[str, Any]:
        """What was asked for, without how far the work has got."""
        values = {k: v for k, v in asdict(self).items() if k not in (*_PROGRESS_FIELDS, "tokenizer_source")}
        values["source"] = {k: v for k, v in self.source.items() if k != "path"}
        return json.loads(json.dumps(values))

    def skipped(self) -> list[dict[str, Any]]:
        """The pictures that could not be read: ``item``, ``name`` and ``why`` of each."""
        return [entry for shard in self.shards for entry in shard["skipped"]]

    def item_of_row(self) -> np.ndarray:
        """The source item (count,) of every row: the row's own number unless pictures were skipped."""
        items = np.arange(min(self.items, len(self.shards) * self.shard_size))
        return np.delete(items, [entry["item"] for entry in self.skipped()])


class TokenCacheWriter:
    """Writes a token cache shard by shard, and goes on where an interrupted run of the same request stopped.

    Args:
        folder: a new or empty folder, or one with a cache of the same request.
        manifest: the request. Shard k holds the source items ``k * shard_size ... (k + 1) * shard_size``.

    Raises:
        UserError: the folder holds something else, or a cache of another request.
    """

    def __init__(self, folder: str | Path, manifest: Manifest) -> None:
        self.folder, self.manifest = Path(folder), manifest
        self._is_new = not self.folder.exists()
        self._check_folder()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._save()

    def _check_folder(self) -> None:
        if self._is_new:
            return
        if not self.folder.is_dir():
            raise UserError("output must be a folder", self.folder, "choose another name")
        remove_temporaries(self.folder)  # of a run that was killed
        if not any(self.folder.iterdir()):
            return
        if not (self.folder / "manifest.json").is_file():
            raise UserError("output folder must be new, empty or a token cache", self.folder, "choose another one")
        before = Manifest.read(self.folder)
        ours, theirs = self.manifest.request(), before.request()
        different = [key for key in ours if ours[key] != theirs.get(key)]
        if different:
            key = different[0]
            raise UserError(
                "output folder holds a token cache of another request",
                f"{self.folder}: {key} is {theirs.get(key)!r:.200}, now {ours[key]!r:.200}",
                "choose another folder or remove this one",
            )
        # Trust what is named and whole; shards are in order, so the first doubtful one ends the trust.
        for shard in before.shards:
            path = self.folder / shard["file"]
            if not path.is_file() or sha256_file(path) != shard["sha256"]:
                break
            self.manifest.shards.append(shard)
        if self.manifest.shards:
            self.manifest.made_with = before.made_with

    def _save(self) -> None:
        self.manifest.count = sum(shard["count"] for shard in self.manifest.shards)
        write_json(self.folder / "manifest.json", asdict(self.manifest))

    def pending(self) -> Iterator[range]:
        """The source items of each shard that is still to be written, in order."""
        step = self.manifest.shard_size
        for start in range(len(self.manifest.shards) * step, self.manifest.items, step):
            yield range(start, min(start + step, self.manifest.items))

    def write(
        self,
        tokens: Int[Tensor, "n h w"],
        labels: Int[Tensor, " n"],
        *,
        skipped: Sequence[dict[str, Any]] = (),
    ) -> None:
        """Write the next shard.

        Args:
            tokens: codes in [0, codebook_size).
            labels: indices into ``class_names``, or -1.
            skipped: ``item``, ``name`` and ``why`` of each picture of the shard that could not be read.
        """
        from safetensors.numpy import save_file

        check_tokens(tokens, self.manifest.codebook_size)
        if tuple(tokens.shape[1:]) != self.manifest.grid or len(tokens) != len(labels):
            raise ValueError(f"tokens {tuple(tokens.shape)}, labels {tuple(labels.shape)}, grid {self.manifest.grid}")
        name = f"tokens-{len(self.manifest.shards):05d}.safetensors"
        arrays: dict[str, np.ndarray] = {
            "tokens": np.ascontiguousarray(tokens.cpu().numpy().astype(np.uint16)),
            "labels": np.ascontiguousarray(labels.cpu().numpy().astype(np.int32)),
        }
        with atomic_path(self.folder / name) as temporary, disk_errors(self.folder / name):
            save_file(arrays, temporary)
            digest = sha256_file(temporary)
        shard = {"file": name, "count": len(tokens), "sha256": digest, "skipped": list(skipped)}
        self.manifest.shards.append(shard)
        self._save()

    def finish(self) -> None:
        """Mark the cache complete."""
        self.manifest.complete = True
        self._save()

    def discard_if_empty(self) -> None:
        """After an error: leave nothing behind unless finished rows make going on worth while."""
        if self.manifest.count:
            return
        for shard in self.manifest.shards:
            (self.folder / shard["file"]).unlink(missing_ok=True)
        (self.folder / "manifest.json").unlink(missing_ok=True)
        if self._is_new and not any(self.folder.iterdir()):
            self.folder.rmdir()


class TokenCache:
    """A finished token cache, read through memory maps.

    Attributes:
        manifest: what the cache says of itself.
        folder: where it lies.
    """

    def __init__(self, folder: str | Path, manifest: Manifest, shards: list[tuple[np.ndarray, np.ndarray]]) -> None:
        self.folder, self.manifest = Path(folder), manifest
        self._shards = shards
        self._ends = np.cumsum([len(labels) for _, labels in shards], dtype=np.int64)

    @classmethod
    def open(cls, folder: str | Path) -> "TokenCache":
        """Map the cache in ``folder``.

        Raises:
            UserError: no cache, an unfinished one, or a shard that is missing or of the wrong length.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise UserError("token cache does not exist", folder, "check the path")
        manifest = Manifest.read(folder)
        if not manifest.complete:
            raise UserError(
                "token cache is not finished",
                f"{folder}: {len(manifest.shards)} of {-(-manifest.items // manifest.shard_size)} shards",
                "run the same ggm-image encode command again, it goes on where it stopped",
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
            f"tokens must lie in [0, {codebook_size})",
            f"got {got}",
            "was this set encoded with another tokenizer?",
        )


def _map_shard(folder: Path, manifest: Manifest, shard: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    path = folder / str(shard["file"])
    remedy = "remove the cache and encode it again"
    if path.parent != folder or not path.is_file():
        raise UserError("shard of the token cache is missing", path, remedy)
    n = shard["count"]
    wanted = {"tokens": ("U16", [n, *manifest.grid]), "labels": ("I32", [n])}
    maps = {}
    try:
        # A safetensors file: 8 bytes of header length, the JSON header, then the arrays as in memory.
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, 1 << 20)))
        for name, (kind, shape) in wanted.items():
            entry = header[name]
            if (entry["dtype"], entry["shape"]) != (kind, shape):
                raise ValueError(f"{name} is {entry['dtype']} {entry['shape']}, the manifest says {kind} {shape}")
            offset, end = entry["data_offsets"]
            dtype = np.dtype("<u2" if kind == "U16" else "<i4")
            if end - offset != int(np.prod(shape)) * dtype.itemsize or 8 + length + end > path.stat().st_size:
                raise ValueError(f"{name} is cut off")
            empty = np.empty(shape, dtype)
            maps[name] = empty if n == 0 else np.memmap(path, dtype, "r", 8 + length + offset, tuple(shape))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError("shard of the token cache cannot be read", f"{path}: {error}", remedy) from error
    return maps["tokens"], maps["labels"]
