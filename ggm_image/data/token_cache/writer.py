"""Write a token cache shard by shard, in any number of processes."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from torch import Tensor

from ggm_image.data.token_cache.manifest import (
    Manifest,
    finished_shard,
    finished_shards,
    note_file,
    shard_file,
    state_of_shard,
)
from ggm_image.data.token_cache.reader import check_tokens
from ggm_image.errors import UserError
from ggm_image.io.files import (
    atomic_path,
    create_json,
    disk_errors,
    is_temporary,
    remove_temporaries,
    sha256_file,
    write_json,
)


class TokenCacheWriter:
    """Writes the shards of a token cache, in any number of processes that do not communicate.

    Process i of n writes the shards k with k % n = i, or of a stream those of such parts. A run resumes
    where an interrupted run of the same request stopped, also with another n. The process that finds every shard
    finished writes the manifest. Its content depends on the shards alone, so several processes may write it safely.

    A shard's note is made before its tokens take their name, and never made twice. Should two processes write the same
    shard by mistake, the first note decides, the other process drops its work, and note and tokens always agree.

    Args:
        folder: a new or empty folder, or one with a cache of the same request.
        manifest: the request. Shard k holds the source items ``k * shard_size ... (k + 1) * shard_size``, or part k of
            a stream.
    """

    def __init__(self, folder: str | Path, manifest: Manifest, share: tuple[int, int] = (0, 1)) -> None:
        self.folder, self.manifest, self.share = Path(folder), manifest, share
        self._is_new = not self.folder.exists()
        if self._is_new or not self._holds_cache():
            self._begin()
        else:
            self._go_on()
        self._drop_damaged()

    def _holds_cache(self) -> bool:
        """Whether an earlier run or another process has begun here; UserError if the folder holds something else."""
        if not self.folder.is_dir():
            raise UserError("output must be a folder", self.folder, "choose another name")
        if (self.folder / "manifest.json").is_file():
            return True
        if any(not is_temporary(path.name) for path in self.folder.iterdir()):
            raise UserError("output folder must be new, empty or a token cache", self.folder, "choose another one")
        return False

    def _begin(self) -> None:
        """Write the request, unless another process has."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not create_json(self.folder / "manifest.json", asdict(self.manifest)):
            self._go_on()

    def _go_on(self) -> None:
        """Go by the manifest that is there, if it is of the same request."""
        before = Manifest.read(self.folder)
        if difference := self.manifest.difference(before):
            raise UserError(
                "output folder holds a token cache of another request",
                f"{self.folder}: {difference}",
                "choose another folder, or add --overwrite to replace this one",
            )
        self.manifest = before

    def _drop_damaged(self) -> None:
        """Trust those of our shards that are whole; the others are still to be written."""
        for shard in self._own_shards():
            files = [self.folder / name for name in (note_file(shard), shard_file(shard))]
            if self._is_whole(shard) or not (self.manifest.complete or any(path.exists() for path in files)):
                continue
            # Another process may have completed the cache, and removed the notes, since we read the manifest.
            self._go_on()
            if not self._is_whole(shard):
                self._drop(shard)

    def drop(self, unit: int) -> None:
        """Remove the finished shards of a unit, so that it is pending again."""
        for shard in self.shards_of(unit):
            self._drop(shard)

    def _drop(self, shard: int) -> None:
        if self.manifest.complete:
            self.manifest.complete = False
            write_json(self.folder / "manifest.json", asdict(self.manifest))
        for name in (note_file(shard), shard_file(shard)):
            (self.folder / name).unlink(missing_ok=True)

    def _is_whole(self, shard: int) -> bool:
        entry = finished_shard(self.folder, self.manifest, shard)
        return entry is not None and sha256_file(self.folder / shard_file(shard)) == entry["sha256"]

    def _own_shards(self) -> Iterator[int]:
        return (shard for unit in self._own_units() for shard in self.shards_of(unit))

    def _own_units(self) -> range:
        return range(self.share[0], self.manifest.parts or self.manifest.shards_in_all, self.share[1])

    def shards_of(self, unit: int) -> tuple[int, ...]:
        """The shards that are written together: of a stream a part's copies each, else one."""
        return tuple(range(unit, self.manifest.shards_in_all, self.manifest.parts or self.manifest.shards_in_all))

    def is_finished(self, shard: int) -> bool:
        """Whether a shard is there, by whichever process."""
        return finished_shard(self.folder, self.manifest, shard) is not None

    def finished_units(self) -> Iterator[int]:
        """Shards of this process that are there, in order; of a stream its parts."""
        return (unit for unit in self._own_units() if all(map(self.is_finished, self.shards_of(unit))))

    def pending_units(self) -> Iterator[int]:
        """Shards of this process that are still to be written, in order; of a stream its parts."""
        return (unit for unit in self._own_units() if not all(map(self.is_finished, self.shards_of(unit))))

    def pending(self) -> Iterator[range]:
        """The source items of each shard of this process that is still to be written, in order."""
        return map(self.manifest.items_of, self.pending_units())

    def write(
        self,
        tokens: Int[Tensor, "n h w"],
        labels: Int[Tensor, " n"],
        *,
        shard: int | None = None,
        skipped: Sequence[dict[str, Any]] = (),
        part: str | None = None,
        keys: UInt8[np.ndarray, "n 16"] | None = None,
        digests: UInt8[np.ndarray, "items 16"] | None = None,
        state: str = "",
        extra: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Write one shard, unless another process has.

        Args:
            tokens: codes in [0, codebook_size).
            labels: indices into ``class_names``, or -1.
            shard: its number; by default the first of this process that is still to be written.
            skipped: ``item``, ``name`` and ``why`` of each image of the shard that could not be read. Of a stream,
                ``item`` counts from the start of the part.
            part: of a stream: the name of the part.
            keys: of a stream: a digest of every row's key.
            digests: of the content of every image's file, those that were skipped included.
            state: a digest of the sizes and times of these files.
            extra: further arrays of the shard by name.
        """
        if shard is None:
            shard = next(shard for shard in self._own_shards() if not self.is_finished(shard))
        check_tokens(tokens, self.manifest.codebook_size)
        if tuple(tokens.shape[1:]) != self.manifest.grid or len(tokens) != len(labels):
            raise ValueError(f"tokens {tuple(tokens.shape)}, labels {tuple(labels.shape)}, grid {self.manifest.grid}")
        # the key order of a finished entry: `_save` fills the hash in
        entry: dict[str, Any] = {"file": shard_file(shard), "count": len(tokens), "sha256": ""}
        entry["skipped"] = list(skipped)
        arrays: dict[str, np.ndarray] = {
            "tokens": np.ascontiguousarray(tokens.cpu().numpy().astype(np.uint16)),
            "labels": np.ascontiguousarray(labels.cpu().numpy().astype(np.int32)),
            **(extra or {}),
        }
        if digests is not None:
            arrays["digests"] = digests
            entry["state"] = state
        if keys is not None:
            arrays["keys"] = keys
            classes = int(labels.max()) + 1 if len(labels) else 0
            entry |= {"part": part, "items": len(tokens) + len(skipped), "classes": classes}
        self._save(shard, arrays, entry)

    def _save(self, shard: int, arrays: dict[str, np.ndarray], entry: dict[str, Any]) -> None:
        """Write the file of a shard and its note, unless another process has."""
        from safetensors.numpy import save_file

        path, note = self.folder / shard_file(shard), self.folder / note_file(shard)
        noted = False
        try:
            with atomic_path(path) as temporary, disk_errors(path):
                save_file(arrays, temporary)
                entry["sha256"] = sha256_file(temporary)
                if not (self.folder / "manifest.json").is_file():
                    self._begin()  # another process has failed before its first shard, and cleaned up
                noted = create_json(note, entry)
                # Notes go when the cache is complete: then the tokens that it names must stay.
                if not noted or Manifest.read(self.folder).complete:
                    raise _Overtaken
        except BaseException as error:
            if noted:
                note.unlink(missing_ok=True)
            if isinstance(error, FileNotFoundError) and Manifest.read(self.folder).complete:
                return  # another process was faster, and has cleaned up
            if not isinstance(error, _Overtaken):
                raise

    def finish(self) -> int:
        """Complete the manifest if all shards are there.

        Returns:
            How many shards other processes still have to write; 0 for a cache that is complete.
        """
        if not (self.folder / "manifest.json").is_file():
            self._begin()  # another process has failed before its first shard, and cleaned up
        found = finished_shards(self.folder, self.manifest)
        if Manifest.read(self.folder).complete:
            self._tidy()
            return 0
        entries = [entry for entry in found if entry is not None]
        if len(entries) < len(found):
            return len(found) - len(entries)
        states = [state_of_shard(self.folder, self.manifest, shard) for shard in range(len(entries))]
        self.manifest.states = states if any(states) else []
        shards: list[Any] = [{k: v for k, v in entry.items() if k != "state"} for entry in entries]
        self.manifest.shards = shards
        self.manifest.count = sum(entry["count"] for entry in entries)
        if self.manifest.count == 0:
            self.discard_if_empty()
            noun = "images" if self.manifest.modality == "image" else "documents"
            raise UserError(f"none of the {noun} can be read", self.manifest.source["path"], "check what the files are")
        if self.manifest.parts:
            self._join_parts()
        self.manifest.complete = True
        with contextlib.suppress(FileNotFoundError):  # another process was faster, and has cleaned up
            write_json(self.folder / "manifest.json", asdict(self.manifest))
        self._tidy()
        return 0

    def _join_parts(self) -> None:
        """Count the items of a stream, and name its classes if that was not done before."""
        manifest = self.manifest
        manifest.items = sum(entry["items"] for entry in manifest.shards)
        kinds = {entry["classes"] > 0: entry["part"] for entry in manifest.shards if entry["count"]}
        if len(kinds) > 1:
            raise UserError(
                "parts must either all have classes or none",
                f"{kinds[True]} has, {kinds[False]} has not",
                "encode only those of one kind, to another folder",
            )
        if not manifest.source.get("classes") and kinds.get(True):
            manifest.class_names = [str(k) for k in range(max(entry["classes"] for entry in manifest.shards))]

    def _tidy(self) -> None:
        """Remove the notes, and what killed processes have left unfinished."""
        for shard in range(self.manifest.shards_in_all):
            (self.folder / note_file(shard)).unlink(missing_ok=True)
        remove_temporaries(self.folder)

    def discard_if_empty(self) -> None:
        """After an error: leave nothing behind unless there are finished rows to resume from."""
        manifest = self.folder / "manifest.json"
        if not self.folder.is_dir() or (manifest.is_file() and Manifest.read(self.folder).complete):
            return
        entries = finished_shards(self.folder, self.manifest)
        if any(entry["count"] for entry in entries if entry is not None):
            return
        if self.share[1] > 1 and any(path.name != "manifest.json" for path in self.folder.iterdir()):
            return  # another process may be at work
        for shard in range(len(entries)):
            for name in (note_file(shard), shard_file(shard)):
                (self.folder / name).unlink(missing_ok=True)
        manifest.unlink(missing_ok=True)
        if self._is_new and not any(self.folder.iterdir()):
            self.folder.rmdir()


class _Overtaken(Exception):
    """Another process has finished the same shard."""
