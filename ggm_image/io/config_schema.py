"""Load configs of runs from YAML and ``key=value`` overrides, and save them as YAML."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ggm_image.errors import UserError
from ggm_image.io.configs import find_config
from ggm_image.io.files import write_text
from ggm_image.io.outputs import RUN_HEAD
from ggm_image.io.yaml import read_yaml
from ggm_image.validation import build, with_new_names

C = TypeVar("C")


def load_config(schema: type[C], path: str | Path, overrides: Sequence[str] = ()) -> C:
    """Fill a config dataclass from a YAML file and overrides.

    Args:
        schema: the dataclass, see `ggm_image.validation.checked`.
        path: YAML file, or the name of a shipped config.
        overrides: ``key=value`` with dots between levels; values are YAML. An override may use the old name of a field
            that the file gives by its new name, and the other way round.

    Returns:
        An instance of ``schema``.
    """
    path = find_config(path)
    written = read_yaml(path, "must be YAML", "compare it with those in configs/", plain=False)
    if not isinstance(written, DictConfig) or not written:  # an empty file is a mistake, not a wish for all defaults
        raise UserError("config file must hold keys and values", path, "compare it with those in configs/")
    changes = OmegaConf.create({})
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not (key and equals):
            raise UserError("overrides are written key=value", repr(override), "for example train.steps=1000")
        try:
            changes = OmegaConf.merge(changes, OmegaConf.from_dotlist([override]))
        except (OmegaConfBaseException, YAMLError, ValueError, TypeError, RecursionError) as error:
            raise UserError("override cannot be read", f"{override!r}: {error}", "write key=value") from error
    try:
        # Each side gets the new names before they are merged, so that an override replaces a value of the same field.
        sides = (with_new_names(schema, OmegaConf.to_container(side)) for side in (written, changes))
        values = OmegaConf.to_container(OmegaConf.merge(*sides), resolve=True, throw_on_missing=True)
    except UserError:
        raise
    except (OmegaConfBaseException, TypeError, ValueError, RecursionError) as error:
        raise UserError("config is not valid", f"{path}: {error}", "compare it with those in configs/") from error
    return build(schema, values)


def save_config(path: str | Path, config: Any) -> None:
    """Write a config, fully resolved, as YAML."""
    write_text(path, f"{RUN_HEAD}the config as it was used\n{OmegaConf.to_yaml(OmegaConf.create(asdict(config)))}")
