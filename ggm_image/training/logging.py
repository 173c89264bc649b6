"""The log of a run, and its clock."""

import csv
import io
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ggm_image.errors import printable
from ggm_image.io.files import write_text
from ggm_image.training.loggers import LOGGERS, Logger, logger_names


def to_stderr(line: str) -> None:
    """Print a line to stderr, if there is one."""
    if sys.stderr is not None:
        print(line, file=sys.stderr, flush=True)


def fetch(values: Mapping[str, Any]) -> dict[str, float]:
    """Numbers in place of tensors of one device, which are waited for once."""
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    numbers = torch.stack([value.float() for value in tensors.values()]).cpu().tolist() if tensors else []
    found = dict(zip(tensors, numbers, strict=True))
    return {name: found[name] if name in found else float(value) for name, value in values.items()}


class MetricLogger:
    """``log.csv``, one row whenever something was measured, and the loggers of ``train.logger``.

    A logger that fails during the run is switched off, which is reported once; ``log.csv`` is written in any case.

    Args:
        columns: names of the values, in order; ``step`` comes first.
        step: rows beyond this step, of a run that was cut, are dropped.
        loggers: ``train.logger``, see `loggers.logger_names`.
    """

    def __init__(
        self,
        folder: Path,
        columns: Iterable[str],
        step: int,
        *,
        loggers: Any = "tensorboard",
        config: Mapping[str, Any] | None = None,
        say: Callable[[str], None] = to_stderr,
    ) -> None:
        self.columns, self._say = ["step", *columns], say
        self.path = folder / "log.csv"
        rows = [self.columns]
        if step and self.path.exists():
            with open(self.path, newline="", encoding="utf-8") as file:
                rows += [row for row in list(csv.reader(file))[1:] if row and row[0].isdigit() and int(row[0]) <= step]
        last = [dict(zip(self.columns, row, strict=False)) for row in rows[1:] if row[0] == str(step)]
        self._last = {name for row in last for name, value in row.items() if value}
        self._loggers: dict[str, Logger] = {}
        for name in logger_names(loggers):
            if (start := LOGGERS[name]) is not None and (opened := start(folder, step, config or {}, say)) is not None:
                self._loggers[name] = opened
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        write_text(self.path, text.getvalue())

    def has(self, name: str) -> bool:
        """Whether the step that the run was resumed from has a value of this name."""
        return name in self._last

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append a row; columns without a value stay empty."""
        if unknown := values.keys() - set(self.columns):
            raise ValueError(f"no column for {sorted(unknown)}")
        row = [str(step), *(f"{values[name]:.6g}" if name in values else "" for name in self.columns[1:])]
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(row)
        self._each(lambda logger: logger.write(step, values))

    def show(self, step: int, name: str, path: Path) -> None:
        """Show an image (PNG) or a text (any other file) that the run has written, where a logger can."""
        self._each(lambda logger: logger.show(step, name, path))

    def close(self) -> None:
        """Close all loggers; a further call does nothing."""
        self._each(lambda logger: logger.close())
        self._loggers.clear()

    def _each(self, work: Callable[[Logger], None]) -> None:
        for name, logger in list(self._loggers.items()):
            try:
                work(logger)
            except Exception as error:  # no logging error may end hours of training
                del self._loggers[name]
                self._say(f"logger {name} is switched off: {type(error).__name__}: {printable(error)}")


class Stopwatch:
    """Seconds of work, over all resumptions of a run.

    Args:
        timer: a clock in seconds that never goes back, even if the system time is changed.
        running: whether it counts from now on, or from `start` on.
    """

    def __init__(
        self, before: float = 0.0, timer: Callable[[], float] = time.monotonic, *, running: bool = True
    ) -> None:
        self._timer, self._before, self._start = timer, before, timer() if running else None

    def start(self) -> None:
        """Count from now on."""
        if self._start is None:
            self._start = self._timer()

    @property
    def seconds(self) -> float:
        return self._before + (self._timer() - self._start if self._start is not None else 0.0)
