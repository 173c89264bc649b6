"""Features of a side in one file on disk: what it holds, and how it is read.

A folder of saved features holds ``features.npy``, which ``numpy.load(..., mmap_mode="r")`` reads: a row an image with
the fields ``features`` (d,), ``label``, ``prediction``, ``height`` and ``width``. Beside it ``features.json`` says by
which protocol they were made, and names every finished chunk with its SHA-256. Nothing is used before the
hashes of all chunks are verified. Memory holds a piece of the rows, for any number of rows.
"""

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float64, Int64

from ggm_image.errors import UserError
from ggm_image.metrics.fid import FeatureStatistics

FORMAT_VERSION = 1
RECORD, ROWS = "features.json", "features.npy"
PARTS = "rows-*.part"
"""Files of rows that are not joined yet, see `ggm_image.metrics.feature_cache`."""
_READ = 1 << 22
"""Numbers that are read at once: 32 MB in float64."""


def row_type(dimension: int) -> np.dtype[Any]:
    """One image: its features, class, predicted class (-1 for none) and size in pixels."""
    numbers = [(name, "<i4") for name in ("label", "prediction", "height", "width")]
    return np.dtype([("features", "<f4", (dimension,)), *numbers])


@dataclass(frozen=True)
class FeatureMatrix:
    """A matrix (n, d) of features on disk: rows are read, in float64, when they are indexed.

    Attributes:
        rows: of `row_type`, mapped from a file.
        picked: the rows that belong to the matrix; all by default.
    """

    rows: np.ndarray
    picked: Int64[np.ndarray, " n"] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        return (len(self), self.rows.dtype["features"].shape[0])

    def __len__(self) -> int:
        return len(self.rows if self.picked is None else self.picked)

    def __getitem__(self, index: slice | Int64[np.ndarray, " m"]) -> Float64[np.ndarray, "m d"]:
        chosen = index if self.picked is None else self.picked[index]
        return np.asarray(self.rows["features"][chosen], dtype=np.float64)

    def slices(self) -> Iterator[slice]:
        """All rows, in pieces that fit in memory for any number of rows."""
        step = max(1, _READ // self.shape[1])
        for start in range(0, len(self), step):
            yield slice(start, min(start + step, len(self)))

    def statistics(self) -> FeatureStatistics:
        """Count, mean and covariance."""
        statistics = FeatureStatistics.empty(self.shape[1])
        for part in self.slices():
            statistics.update(self[part])
        return statistics


@dataclass
class Features:
    """All that is known of the images of a side.

    Attributes:
        rows: of `row_type`, mapped from a file.
        folder: where they are saved; None for a temporary file.
    """

    rows: np.ndarray
    record: dict[str, Any]
    folder: Path | None = None
    reused: int = 0

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def protocol(self) -> dict[str, Any]:
        """All that the rows depend on."""
        return self.record["protocol"]

    @property
    def class_names(self) -> list[str]:
        """Names of the labels."""
        return self.protocol["class_names"]

    @property
    def labels(self) -> Int64[np.ndarray, " n"]:
        """Class of every image, -1 where none is known."""
        return self.rows["label"].astype(np.int64)

    @property
    def matrix(self) -> FeatureMatrix:
        """The features."""
        return FeatureMatrix(self.rows)

    def of_class(self, name: str) -> FeatureMatrix:
        """The features of one class."""
        return FeatureMatrix(self.rows, np.flatnonzero(self.labels == self.class_names.index(name)))

    @cached_property
    def statistics(self) -> FeatureStatistics:
        """Count, mean and covariance of all features."""
        return self.matrix.statistics()

    @cached_property
    def sizes(self) -> Counter[str]:
        """How many images there are of each width and height."""
        pairs, counts = np.unique(np.stack([self.rows["width"], self.rows["height"]]), axis=1, return_counts=True)
        found = {f"{w}x{h}": int(n) for (w, h), n in zip(pairs.T, counts, strict=True)}
        return Counter(found)


def open_features(folder: str | os.PathLike[str]) -> Features:
    """The saved features in ``folder``."""
    folder = Path(folder)
    fix = "rerun the command that extracts them; it resumes where it stopped"
    if not (folder / RECORD).is_file() and (parts := len(list(folder.glob(PARTS)))):
        raise UserError("saved features are not finished", f"{folder}: {parts} parts that are not joined", fix)
    record = read_record(folder)
    path, n = folder / ROWS, record["rows"]
    if not path.is_file():
        raise UserError("saved features are not finished", f"{folder}: no {ROWS}", fix)
    dtype = row_type(record["protocol"]["features"]["dimension"])
    if rows_of_file(path, dtype) != n or whole_chunks(path, record["chunks"], dtype) != record["chunks"]:
        raise UserError("saved features are damaged", path, "make them again from their images")
    found = Features(map_rows(path, dtype, n), record, folder, n)
    if n and found.labels.max() >= max(1, len(found.class_names)):
        got = f"{folder}: {found.labels.max()} of {len(found.class_names)}"
        raise UserError("saved features must be of known classes", got, "make them again from their images")
    return found


def are_features(folder: Path) -> bool:
    """Whether ``folder`` holds saved features, finished or not."""
    return (folder / RECORD).is_file() or any(folder.glob(PARTS))


def read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    try:
        record = json.loads(path.read_bytes())
        protocol = record["protocol"]
        whole = (
            record["format_version"] == FORMAT_VERSION
            and isinstance(protocol["class_names"], list)
            and all(isinstance(name, str) for name in protocol["class_names"])
            and isinstance(protocol["side"], dict)
            and isinstance(protocol["features"]["dimension"], int)
            and isinstance(protocol["features"]["name"], str)
            and isinstance(protocol["features"]["sha256"], str | None)
            and {"batch_size", "device"} <= set(protocol)
            and {"source", "versions"} <= set(record["notes"])
            and record["rows"] == (record["chunks"][-1]["rows"] if record["chunks"] else 0)
            and all(isinstance(chunk["rows"], int) for chunk in record["chunks"])
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        got = f"{path}: {type(error).__name__}: {error}"
        raise UserError("record of saved features cannot be read", got, "remove the folder") from error
    if not whole:
        raise UserError("record of saved features cannot be read", f"{path}: other format", "remove the folder")
    return record


def header(dtype: np.dtype[Any], n: int) -> bytes:
    """The head of a .npy file with ``n`` rows; NumPy leaves room in it, so that its length does not depend on n."""
    buffer = io.BytesIO()
    entries = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (n,)}
    np.lib.format.write_array_header_1_0(buffer, entries)
    return buffer.getvalue()


def rows_of_file(path: Path, dtype: np.dtype[Any]) -> int | None:
    """How many rows a .npy file holds; None if its head is another or says another number."""
    n, rest = divmod(path.stat().st_size - len(header(dtype, 0)), dtype.itemsize)
    if n < 0 or rest:
        return None
    with open(path, "rb") as file:
        return n if file.read(len(header(dtype, n))) == header(dtype, n) else None


def whole_chunks(path: Path, chunks: list[dict[str, Any]], dtype: np.dtype[Any]) -> list[dict[str, Any]]:
    """The chunks up to the first that the file does not hold as it was written."""
    whole, rows = [], 0
    with open(path, "rb") as file:
        file.seek(len(header(dtype, 0)))
        for chunk in chunks:
            data = file.read((chunk["rows"] - rows) * dtype.itemsize)
            if hashlib.sha256(data).hexdigest() != chunk["sha256"]:
                break
            whole.append(chunk)
            rows = chunk["rows"]
    return whole


def map_rows(file: Path | IO[bytes], dtype: np.dtype[Any], n: int) -> np.ndarray:
    """The first ``n`` rows of a finished file, read when they are indexed."""
    return np.memmap(file, dtype, "r", len(header(dtype, n)), (n,))
