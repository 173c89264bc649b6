"""A search for the best sampler settings: the grid, what is best, and one option after the other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from quality_vs_cost import canonical
from yaml import YAMLError

from ggm_image.errors import UserError
from ggm_image.sampler.settings import Settings

Row = dict[str, Any]


def parse_grid(entries: Sequence[str]) -> dict[str, list[Any]]:
    """``NAME=VALUE,VALUE`` entries and YAML files of lists to lists of sampler settings, in the order given.

    Raises:
        UserError: an entry is neither, is empty, or names no setting.
    """
    grid: dict[str, list[Any]] = {}
    for entry in entries:
        name, equals, values = entry.partition("=")
        fix = "write e.g. guidance=4,6,8, or name a YAML file of lists"
        try:
            if equals:
                found: Any = OmegaConf.to_container(OmegaConf.create(f"{name}: [{values}]"))
            elif Path(entry).is_file():
                found = OmegaConf.to_container(OmegaConf.load(entry))
            else:
                raise UserError("a grid is NAME=VALUE,VALUE or a file", repr(entry), fix)
        except (YAMLError, OmegaConfBaseException) as error:
            raise UserError("grid cannot be read", repr(entry), fix) from error
        if not isinstance(found, dict) or not all(isinstance(v, list) and v for v in found.values()):
            raise UserError("a grid needs a list of values for each setting", repr(entry), fix)
        grid |= {str(key): value for key, value in found.items()}
    for name, values in grid.items():
        for value in values:
            Settings.of({name: value})
    return grid


@dataclass(frozen=True)
class Goal:
    """What makes a row the best: the smallest distance by the first features, with at least this recall and at most
    so many passes."""

    min_recall: float = 0.0
    max_passes: int | None = None

    def key(self, row: Row) -> tuple[int, float]:
        """Smaller is better; below the recall the highest recall comes first, and above the passes the fewest."""
        first = row["figures"][0]
        if self.max_passes is not None and row["passes"] > self.max_passes:
            return 2, row["passes"]
        return (0, first["distance"]) if first["recall"] >= self.min_recall else (1, -first["recall"])


def coordinate_search(
    start: Settings,
    grid: dict[str, list[Any]],
    measure: Callable[[Settings], Row | None],
    goal: Goal,
    budget: int,
    fits: Callable[[Settings], bool] = lambda settings: True,
) -> list[Row]:
    """Vary one option at a time over its list, keep the best, continue with the next, until a round changes nothing.

    Args:
        start: the first settings.
        grid: the values of each option, in the order in which they are varied.
        measure: the row of settings; None stops the search.
        goal: which row is the best.
        budget: at most so many rows.
        fits: whether settings may be measured; the start always is.

    Returns:
        All rows, in the order of measurement.
    """
    rows: dict[Settings, Row] = {}

    def tried(settings: Settings) -> bool:
        """Whether the search continues."""
        settings = canonical(settings)
        if settings in rows or (rows and not fits(settings)):
            return True
        row = measure(settings) if len(rows) < budget else None
        if row is not None:
            rows[settings] = row
        return row is not None

    def best() -> Settings:
        return min(rows, key=lambda settings: goal.key(rows[settings]))

    if not tried(start):
        return []
    before = None
    while before != best():
        before = best()
        for name, values in grid.items():
            centre = best()
            for value in values:
                if not tried(replace(centre, **{name: value})):
                    return list(rows.values())
    return list(rows.values())
