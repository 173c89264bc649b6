"""``models``: what is shipped to sample with."""

from typing import Any

import click

from ggm_image.cli.options import GroupedCommand, json_option, print_json, where

_FIGURES = {
    "calls": "calls",
    "fd_efficientnet_lite0": "FD (ImageNet)",
    "recall_efficientnet_lite0": "recall",
    "fd_cifar10_classifier": "FD (CIFAR-10 classifier)",
    "class_accuracy": "class accuracy",
}
"""Figures in the list, in this order; --json has all of them."""


@click.command(cls=GroupedCommand)
@where(json_option)
def models(as_json: bool) -> None:
    """List the shipped models: grid, classes, tokenizer, size, presets, and what was measured of them."""
    from ggm_image.pipelines.figures import preset_figures
    from ggm_image.pipelines.model_folder import shipped_models

    rows: list[dict[str, Any]] = [
        {
            "name": m.name,
            "grid": list(m.network.grid),
            "classes": len(m.class_names),
            "tokenizer": m.tokenizer_name,
            "megabytes": round(m.weights.stat().st_size / 1e6, 1) if m.weights.is_file() else None,
            "presets": sorted(m.presets),
            "figures": preset_figures(m),
            "folder": str(m.folder),
        }
        for m in shipped_models()
    ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        click.echo(row.pop("name"))
        # Figures belong to a preset, so each preset has a line of its own below the other entries.
        figures = row.pop("figures")
        for key, value in row.items():
            click.echo(f"  {key:<12} {_shown(key, value)}")
        for preset, measured in figures.items():
            shown = ", ".join(f"{name} {measured[key]:.4g}" for key, name in _FIGURES.items() if key in measured)
            click.echo(f"  {preset:<12} {shown}; {measured['n']} samples")


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "not on disk"
    return (" x " if key == "grid" else ", ").join(map(str, value)) if isinstance(value, list) else str(value)
