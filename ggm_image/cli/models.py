"""``models``: what is shipped to sample with."""

from typing import Any

import click

from ggm_image.cli.options import GroupedCommand, json_option, print_json, where


@click.command(cls=GroupedCommand)
@where(json_option)
def models(as_json: bool) -> None:
    """List the shipped models: grid, classes, tokenizer, size, presets."""
    from ggm_image.pipelines.model_folder import shipped_models

    rows = [
        {
            "name": m.name,
            "grid": list(m.network.grid),
            "classes": len(m.class_names),
            "tokenizer": m.tokenizer_name,
            "megabytes": round(m.weights.stat().st_size / 1e6, 1) if m.weights.is_file() else None,
            "presets": sorted(m.presets),
            "folder": str(m.folder),
        }
        for m in shipped_models()
    ]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        click.echo(row.pop("name"))
        for key, value in row.items():
            click.echo(f"  {key:<12} {_shown(key, value)}")


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "not on disk"
    return (" x " if key == "grid" else ", ").join(map(str, value)) if isinstance(value, list) else str(value)
