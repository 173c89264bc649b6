"""What was measured of a model: ``quality.json`` beside its weights, read without importing torch."""

import json
from typing import Any

from ggm_image.errors import UserError
from ggm_image.pipelines.model_folder import NetworkFolder
from ggm_image.sampler.settings import Settings

QUALITY = "quality.json"


def preset_figures(model: NetworkFolder) -> dict[str, dict[str, Any]]:
    """Figures of those presets that were measured, by preset; empty where there is no ``quality.json``.

    A row belongs to a preset if all of its sampler settings are the preset's. Of several rows the one with most images
    counts. Numbers and strings of the row are returned, as they are; of another file's contents nothing is.
    """
    try:
        rows = json.loads((model.folder / QUALITY).read_bytes())["results"]
        measured = [(Settings.of(dict(row["settings"])), row) for row in rows]
        measured.sort(key=lambda pair: -int(pair[1]["n"]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, UserError):
        return {}
    found: dict[str, dict[str, Any]] = {}
    for preset in model.presets:
        row = next((row for settings, row in measured if settings == model.settings(preset)), None)
        if row is not None:
            found[preset] = {key: value for key, value in row.items() if isinstance(value, int | float | str)}
    return found
