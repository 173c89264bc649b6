"""``configs``: the shipped configs, and a copy of one to edit."""

from dataclasses import asdict
from pathlib import Path

import click

from ggm_image.cli.options import GroupedCommand, json_option, overwrite_option, print_json, where
from ggm_image.errors import UserError
from ggm_image.io.configs import find_config, shipped_configs
from ggm_image.io.files import write_text
from ggm_image.io.outputs import Gate


@click.command(cls=GroupedCommand)
@click.argument("name", required=False)
@click.argument("out", required=False, type=click.Path(path_type=Path))
@where(overwrite_option, json_option)
def configs(name: str | None, out: Path | None, overwrite: bool, as_json: bool) -> None:
    """List the shipped configs, or copy the config NAME to the file or folder OUT.

    `train` and `train-tokenizer` take the names as well as files.
    """
    if name is None:
        _list(as_json)
        return
    path = find_config(name)
    if out is None:
        raise UserError("OUT is missing", f"only {name}", "give the file or folder to copy the config to")
    target = out / path.name if out.is_dir() else out
    content = path.read_bytes()
    Gate("configs", overwrite, "OUT").check_file(target, content)
    write_text(target, content.decode("utf-8"))
    if as_json:
        print_json({"name": path.stem, "out": str(target)})
    else:
        click.echo(str(target))


def _list(as_json: bool) -> None:
    found = shipped_configs()
    if as_json:
        print_json([asdict(config) | {"path": str(config.path)} for config in found])
        return
    for config in found:
        click.echo(f"{config.name}{'' if config.tried else '  (not run: a starting point)'}")
        for key, value in (
            ("what", config.what),
            ("size", config.size),
            ("hardware", config.hardware),
            ("for", config.command),
        ):
            if value:
                click.echo(f"  {key:<9} {value}")
