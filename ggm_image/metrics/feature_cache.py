"""Features of a side while they are extracted, by one process or by several that share nothing but the folder.

Rows are split into parts at fixed places, which depend neither on the process nor on the number of rows. A part is a
file of its own: a header with its SHA-256, then the rows. A run that was interrupted extracts the missing parts. The
process that finds every part present joins them to ``features.npy``, lists its chunks in ``features.json`` and
removes the parts. A run with more rows of the same side extends the existing rows. Without a folder the rows are in an
unnamed temporary file, which ends with the process.
"""

import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from ggm_image.errors import UserError
from ggm_image.io.files import remove_temporaries, write_json, write_together
from ggm_image.metrics.feature_file import (
    FORMAT_VERSION,
    PARTS,
    RECORD,
    ROWS,
    Features,
    header,
    map_rows,
    read_record,
    row_type,
    rows_of_file,
    whole_chunks,
)


def fingerprint(protocol: dict[str, Any]) -> str:
    """SHA-256 of a protocol."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()


@dataclass
class FeatureCache:
    """The features of a side while they are made.

    Attributes:
        protocol: all that a row depends on, with ``class_names`` and ``features.dimension``.
        notes: what else is to be told of them, e.g. the versions of the libraries.
        n: how many rows there shall be.
        step: rows of a part.
        kept: rows that are joined already, as far as they are wanted and whole.
        reused: rows that were there when the store was made, joined or in parts.
    """

    protocol: dict[str, Any]
    notes: dict[str, Any]
    n: int
    step: int
    folder: Path | None = None
    kept: int = field(default=0, init=False)
    _record: dict[str, Any] | None = field(default=None, init=False)
    _sound: bool = field(default=False, init=False)
    _file: IO[bytes] | None = field(default=None, init=False)
    _written: set[int] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self.type = row_type(self.protocol["features"]["dimension"])
        self.look()
        self.reused = self.n - sum(map(len, self.missing()))

    def look(self) -> None:
        """See what is joined: another process may have done so."""
        self.kept, self._record, self._sound = 0, None, False
        if self.folder is None:
            return
        if self.folder.exists() and not self.folder.is_dir():
            raise UserError("statistics must go to a folder", f"{self.folder} is a file", "choose another name")
        if not (self.folder / RECORD).is_file():
            return
        try:
            before = read_record(self.folder)
        except UserError as error:
            warnings.warn(f"{error.what} ({error.got}): the features are extracted again", stacklevel=2)
            return
        if before["protocol"] != self.protocol:
            warnings.warn(f"{self.folder} holds features of another protocol: they are extracted again", stacklevel=2)
            return
        # Rows up to the first damaged chunk are reused; the rest is extracted again.
        path, rows = self.folder / ROWS, 0
        if path.is_file():
            chunks = whole_chunks(path, before["chunks"], self.type)
            rows = chunks[-1]["rows"] if chunks else 0
        if rows < min(self.n, before["rows"]):
            got = f"{path} from row {rows} on"
            warnings.warn(f"saved features are damaged ({got}): these rows are extracted again", stacklevel=2)
        self._sound = path.is_file() and rows_of_file(path, self.type) is not None
        if rows and not self._sound:
            warnings.warn(f"saved features are damaged ({path}: its head): it is written again", stacklevel=2)
        self.kept, self._record = min(rows, self.n), before

    def parts(self) -> list[range]:
        """The rows that are not joined, in parts."""
        if self.kept == self.n:
            return []
        starts = range(self.kept // self.step * self.step, self.n, self.step)
        return [range(max(start, self.kept), min(start + self.step, self.n)) for start in starts]

    def missing(self) -> list[range]:
        """The parts that are not there, or not whole."""
        return [rows for rows in self.parts() if not self.holds(rows)]

    def holds(self, rows: range) -> bool:
        """Whether a part exists and is complete."""
        if self.folder is None:
            return rows.start in self._written
        if not self._path(rows).is_file():
            return False
        if self._read(rows) is None:
            warnings.warn(f"saved features are damaged ({self._path(rows)}): the part is extracted again", stacklevel=2)
            return False
        return True

    def open(self) -> None:
        """Make ready for `write`; a folder that cannot be written to shows here, before any work is done."""
        with self._explained():
            if self.folder is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=self.folder):
                    pass
            elif self._file is None:
                self._file = tempfile.TemporaryFile()  # noqa: SIM115
                self._file.write(header(self.type, self.n))

    def write(self, rows: range, values: np.ndarray) -> None:
        """Write a part: ``values`` of `row_type`."""
        data = values.tobytes()
        with self._explained():
            if self.folder is None:
                assert self._file is not None, "the store is not open"
                self._file.seek(len(header(self.type, self.n)) + rows.start * self.type.itemsize)
                self._file.write(data)
                self._file.flush()
                self._written.add(rows.start)
                return
            content = json.dumps(self._head(rows, self.notes, data)).encode() + b"\n" + data
            write_together(self._path(rows), lambda path: path.write_bytes(content))

    def _path(self, rows: range) -> Path:
        assert self.folder is not None
        return self.folder / f"rows-{rows.start:09d}-{rows.stop:09d}.part"

    def _head(self, rows: range, notes: dict[str, Any], data: bytes) -> dict[str, Any]:
        """What the first line of a part says."""
        digest = hashlib.sha256(json.dumps([self.protocol, notes], sort_keys=True).encode() + data)
        return {"rows": [rows.start, rows.stop], "notes": notes, "sha256": digest.hexdigest()}

    def _read(self, rows: range) -> tuple[dict[str, Any], bytes] | None:
        """Notes and rows of a part; None if it is not there or not whole."""
        try:
            with open(self._path(rows), "rb") as file:
                head, data = json.loads(file.readline()), file.read()
            whole = head == self._head(rows, head["notes"], data)
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return (head["notes"], data) if whole and len(data) == len(rows) * self.type.itemsize else None

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            got = f"{self.folder or tempfile.gettempdir()}: {error.strerror}"
            fix = "choose another folder (--statistics, TMPDIR) or make room; what is finished is kept"
            raise UserError("features cannot be written", got, fix) from error

    def finish(self) -> Features:
        """The features, all rows of which are there now."""
        if self.folder is None:
            assert self._file is not None, "the store is not open"
            rows = map_rows(self._file, self.type, self.n)
            self.close()
            return Features(rows, {"protocol": self.protocol, "notes": self.notes})
        if self.kept < self.n or not self._sound:
            with self._explained():
                self._join(self.folder)
        assert self._record is not None
        self._tidy(self.folder)
        return Features(map_rows(self.folder / ROWS, self.type, self.n), self._record, self.folder, self.reused)

    def _join(self, folder: Path) -> None:
        """All rows in one file: first the file, then its record; the parts go last, so that no kill loses any."""
        parts = self.parts()
        first = None if self.kept else self._read(parts[0])
        notes = first[0] if first else (self._record or {"notes": self.notes})["notes"]
        chunks: list[dict[str, Any]] = []

        def join(path: Path) -> None:
            chunks.clear()
            with open(path, "wb") as file:
                file.write(header(self.type, self.n))
                for start in range(0, self.n, self.step):
                    data = self._chunk(folder, range(start, min(start + self.step, self.n)))
                    file.write(data)
                    rows = start + len(data) // self.type.itemsize
                    chunks.append({"rows": rows, "sha256": hashlib.sha256(data).hexdigest()})

        try:
            write_together(folder / ROWS, join)
        except _Gone:
            self.look()  # another process has joined them, and removed the parts
            if self.kept < self.n:
                fix = "run the command again: it makes what is missing"
                raise UserError("features were removed while they were joined", folder, fix) from None
            return
        self._record = {
            "format_version": FORMAT_VERSION,
            "protocol": self.protocol,
            "notes": notes,
            "rows": self.n,
            "chunks": chunks,
        }
        write_together(folder / RECORD, lambda path: write_json(path, self._record))

    def _tidy(self, folder: Path) -> None:
        """Remove parts that are joined; this process or a killed one may have made one since they were."""
        with suppress(OSError):  # a folder that is only read
            for path in folder.glob(PARTS):
                if int(path.name.split("-")[1]) < self.n:
                    path.unlink(missing_ok=True)
            remove_temporaries(folder)

    def _chunk(self, folder: Path, rows: range) -> bytes:
        """Rows of a step: joined before, in a part, or half and half."""
        data = b""
        if kept := range(rows.start, min(rows.stop, self.kept)):
            data = map_rows(folder / ROWS, self.type, self.kept)[kept.start : kept.stop].tobytes()
        if rest := range(max(rows.start, self.kept), rows.stop):
            part = self._read(rest)
            if part is None:
                raise _Gone
            data += part[1]
        return data

    def close(self) -> None:
        """Let go of the file; what is finished stays, and nothing else."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self.folder is not None:
            with suppress(OSError):  # not empty, or never made
                os.rmdir(self.folder)


class _Gone(Exception):
    """A part is not there any more."""
