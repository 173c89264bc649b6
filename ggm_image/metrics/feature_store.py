"""Features of a side while they are made: written chunk by chunk, so that an interrupted run can go on.

A chunk is on the disk before ``features.json`` names it. Whatever ends a run, the next one goes on after the last
chunk that is named and whole. Until all are there the file is called ``features.partial``. Without a folder the rows
lie in a nameless temporary file, which goes with the process.
"""

import hashlib
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from ggm_image.errors import UserError
from ggm_image.files import write_json
from ggm_image.metrics.feature_rows import (
    FORMAT_VERSION,
    PARTIAL,
    RECORD,
    ROWS,
    Features,
    header,
    map_rows,
    read_record,
    row_type,
    whole_chunks,
)

try:
    import fcntl
except ImportError:  # no POSIX system: two runs into one folder then have to be avoided by the user
    fcntl = None  # type: ignore[assignment]


@dataclass
class FeatureStore:
    """The features of a side while they are made.

    Attributes:
        protocol: all that they depend on, with ``n``, ``class_names`` and ``features.dimension``.
        notes: what else is to be told of them, e.g. the versions of the libraries.
        folder: where to; None for a temporary file.
    """

    protocol: dict[str, Any]
    notes: dict[str, Any]
    folder: Path | None = None
    chunks: list[dict[str, Any]] = field(default_factory=list, init=False)
    _file: IO[bytes] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.type = row_type(self.protocol["features"]["dimension"])
        if self.folder is not None:
            self._take_over(self.folder)
        self.reused = self.done

    @property
    def done(self) -> int:
        """Rows that are finished."""
        return self.chunks[-1]["rows"] if self.chunks else 0

    def _take_over(self, folder: Path) -> None:
        """Keep what an earlier run of the same protocol has finished, as far as it is whole."""
        if folder.exists() and not folder.is_dir():
            raise UserError("statistics must go to a folder", f"{folder} is a file", "choose another name")
        if not (folder / RECORD).is_file():
            return
        try:
            before = read_record(folder)
        except UserError as error:
            warnings.warn(f"{error.what} ({error.got}): the features are made again", stacklevel=2)
            return
        if before["protocol"] != self.protocol:
            warnings.warn(f"{folder} holds features of another protocol: they are made again", stacklevel=2)
            return
        path = next((p for p in (folder / ROWS, folder / PARTIAL) if p.is_file()), None)
        if before["chunks"]:
            self.chunks = [] if path is None else whole_chunks(path, before["chunks"], self.type, self.protocol["n"])
            if len(self.chunks) < len(before["chunks"]):
                got = f"{path or folder / ROWS} from row {self.done} on"
                warnings.warn(f"saved features are damaged ({got}): these rows are made again", stacklevel=2)
        if self.chunks:
            self.notes = before["notes"]

    def open(self) -> None:
        """Make ready for `append`; a folder that cannot be written to shows here, before any work is done."""
        with self._explained():
            self._file = self._open()

    def append(self, rows: np.ndarray) -> None:
        """Write the next chunk, of `row_type`, and then name it in the record."""
        assert self._file is not None, "the store is not open"
        data = rows.tobytes()
        with self._explained():
            self._file.write(data)
            self._file.flush()
            if self.folder is not None:
                os.fsync(self._file.fileno())
            self.chunks.append({"rows": self.done + len(rows), "sha256": hashlib.sha256(data).hexdigest()})
            if self.folder is not None:
                write_json(self.folder / RECORD, self._record())

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            got = f"{self.folder or tempfile.gettempdir()}: {error.strerror}"
            fix = "choose another folder (--statistics, TMPDIR) or make room; what is finished is kept"
            raise UserError("features cannot be written", got, fix) from error

    def _open(self) -> IO[bytes]:
        """The file of rows, with nothing behind the last finished one."""
        head = header(self.type, self.protocol["n"])
        if self.folder is None:
            file = tempfile.TemporaryFile()  # noqa: SIM115
            file.write(head)
            return file
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / PARTIAL
        if (self.folder / ROWS).is_file():
            os.replace(self.folder / ROWS, path)
        file = open(path, "r+b" if path.is_file() else "w+b")  # noqa: SIM115
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            fix = "wait for it, or give another --statistics folder"
            raise UserError("these features are being made by another process", self.folder, fix) from error
        file.truncate(len(head) + self.done * self.type.itemsize)
        file.write(head)
        file.seek(0, os.SEEK_END)
        return file

    def _record(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "protocol": self.protocol,
            "notes": self.notes,
            "rows": self.done,
            "chunks": self.chunks,
        }

    def finish(self) -> Features:
        """The features, all rows of which are there now."""
        n = self.protocol["n"]
        assert self.done == n, f"{self.done} of {n} rows"
        if self.folder is None:
            assert self._file is not None
            rows = map_rows(self._file, self.type, n)
        else:
            if (self.folder / PARTIAL).is_file():
                os.replace(self.folder / PARTIAL, self.folder / ROWS)
            rows = map_rows(self.folder / ROWS, self.type, n)
        self.close()
        return Features(rows, self._record(), self.folder, self.reused)

    def close(self) -> None:
        """Let go of the file; what is finished stays, and nothing else."""
        if self._file is None:
            return
        if self.folder is not None and not self.chunks:
            (self.folder / PARTIAL).unlink(missing_ok=True)
            if not any(self.folder.iterdir()):
                self.folder.rmdir()
        self._file.close()
        self._file = None
