"""Training curves of a run, from its ``log.csv``: one image, one panel a quantity."""

import contextlib
import csv
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ggm_image.errors import UserError
from ggm_image.io.files import atomic_path
from ggm_image.io.marks import mark_png

CURVES = "curves.png"
_TOGETHER = {"nll_level": "NLL at level, nats per token", "nll_masked": "NLL at masked share, nats per token"}
"""Columns that begin so share a panel, one line each."""
_NAMES = {"nll": "held-out NLL, nats per token", "psnr": "PSNR, dB", "dead": "dead codes"}
_SIDE = ("step", "minutes")
_SMOOTHED = ("loss", "gradient_norm", "pixel", "perceptual", "adversarial", "discriminator", "matching")
_COLUMNS = 3
_MOST_COLUMNS, _LARGEST = 40, 1e100

Series = dict[str, tuple[list[int], list[float]]]


def read_log(folder: str | os.PathLike[str]) -> Series:
    """Every column of ``log.csv`` that holds numbers: its steps and its values."""
    path = Path(folder) / "log.csv"
    if not path.is_file():
        raise UserError("a run is a folder with log.csv", f"no {path}", "name the --out folder of a training")
    found: Series = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                for name, value in row.items():
                    if value and name not in _SIDE:
                        steps, values = found.setdefault(name, ([], []))
                        steps.append(_step(row["step"]))
                        values.append(float(value))
    except (
        KeyError,
        ValueError,
        TypeError,
        AttributeError,
        csv.Error,
    ) as error:  # a line that is being written at this moment
        raise UserError("log.csv must be that of a run", f"{path}: {error}", "try again, or restore it") from error
    if len(found) > _MOST_COLUMNS:
        raise UserError("log.csv must be that of a run", f"{path}: {len(found)} columns", "restore it")
    if not found:
        raise UserError("the run has logged nothing yet", path, "wait for the first train.log_every steps")
    return found


def _step(text: str) -> int:
    if len(text) > 15:
        raise ValueError(f"a step of {len(text)} digits")
    return int(text)


def plot_run(folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Plot the curves of a run, finished or not.

    Args:
        out: a .png file; ``curves.png`` in the run's folder by default.
    """
    series = read_log(folder)
    path = Path(folder) / CURVES if out is None else Path(out)
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError("curves need matplotlib", "not installed", "pip install 'ggm-image[plots]'") from error
    panels = _panels(series)
    rows = -(-len(panels) // _COLUMNS)
    figure = Figure(figsize=(4.2 * min(_COLUMNS, len(panels)), 2.7 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for k, (title, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, min(_COLUMNS, len(panels)), k + 1)
        _panel(axes, title, lines)
    file = io.BytesIO()
    figure.savefig(file, dpi=120, format="png")
    with atomic_path(path) as temporary:
        temporary.write_bytes(mark_png(file.getvalue(), "plot"))
    return path


def plot_at_the_end(folder: str | os.PathLike[str]) -> None:
    """`plot_run`, where matplotlib works: a run does not fail for a missing image."""
    with contextlib.suppress(UserError, OSError):
        plot_run(folder)


def _panels(series: Series) -> dict[str, Series]:
    """Lines by panel, in the order of the log."""
    panels: dict[str, Series] = {}
    for name, line in series.items():
        prefix = next((prefix for prefix in _TOGETHER if name.startswith(prefix)), None)
        title = _TOGETHER[prefix] if prefix else _NAMES.get(name, name.replace("_", " "))
        panels.setdefault(title, {})[name[len(prefix) + 1 :] if prefix else name] = line
    return panels


def _panel(axes: Any, title: str, lines: Mapping[str, tuple[list[int], list[float]]]) -> None:
    for name, (steps, values) in lines.items():
        # what is not finite is a gap; matplotlib cannot span what is almost infinite
        values = [value if abs(value) < _LARGEST else math.nan for value in values]
        style: dict[str, Any] = {"marker": "o", "markersize": 3} if len(steps) < 10 else {}
        if name in _SMOOTHED and len(steps) >= 20:
            axes.plot(steps, values, linewidth=0.6, alpha=0.35, color="C0")
            axes.plot(steps, _smooth(values), linewidth=1.6, color="C0")
        else:
            axes.plot(steps, values, linewidth=1.4, label=name, **style)
    axes.set_title(title, fontsize=10, parse_math=False)
    axes.set_xlabel("step", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=7, ncols=2)


def _smooth(values: list[float]) -> list[float]:
    """Moving average over about a twenty-fifth of the curve, without the pull of its start."""
    decay = 1 - min(1, 25 / len(values))
    mean, weight, smoothed = 0.0, 0.0, []
    for value in values:
        mean, weight = decay * mean + (1 - decay) * value, decay * weight + (1 - decay)
        smoothed.append(mean / weight)
    return smoothed
