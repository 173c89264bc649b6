"""What was measured of a model: ``quality.json`` beside its weights, read without importing torch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ggm_image.errors import UserError
from ggm_image.pipelines.model_folder import NetworkFolder
from ggm_image.sampler.settings import Settings

QUALITY = "quality.json"


def measured_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a folder's ``quality.json``; empty where there is none, or where it is another file's."""
    try:
        rows = json.loads((folder / QUALITY).read_bytes())["results"]
        return [dict(row) for row in rows]
    except (OSError, ValueError, LookupError, TypeError):
        return []


def plain_figures(row: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers and strings of a row, as they are."""
    return {key: value for key, value in row.items() if isinstance(value, int | float | str)}


def preset_figures(model: NetworkFolder) -> dict[str, dict[str, Any]]:
    """Figures of those presets that were measured, by preset; empty where there is no ``quality.json``.

    A row belongs to a preset if all of its sampler settings are the preset's. Of several rows the one with most images
    counts. Numbers and strings of the row are returned, as they are; of another file's contents nothing is.
    """
    try:
        measured = [(Settings.of(dict(row["settings"])), row) for row in measured_rows(model.folder)]
        measured.sort(key=lambda pair: -int(pair[1]["n"]))
    except (ValueError, LookupError, TypeError, AttributeError, UserError):
        return {}
    found: dict[str, dict[str, Any]] = {}
    for preset in model.presets:
        row = next((row for settings, row in measured if settings == model.settings(preset)), None)
        if row is not None:
            found[preset] = plain_figures(row)
    return found
