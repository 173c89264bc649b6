"""Read YAML files as plain data. Any problem raises a UserError of one line."""

from pathlib import Path
from typing import Any

from ggm_image.errors import UserError
from ggm_image.io.files import check_plain

MOST_BYTES = 1 << 20
"""Of a config; the names of ten thousand classes take half of it."""


def read_yaml(path: Path, what: str, fix: str, *, plain: bool = True) -> Any:
    """The content of a YAML file.

    Args:
        what: it must be, for the error.
        plain: resolve references, and return plain values; else what OmegaConf loads.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        check_plain(path)
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path} {what}", f"{path.stat().st_size} bytes", fix)
        loaded = OmegaConf.load(path)
        return OmegaConf.to_container(loaded, resolve=True) if plain else loaded
    except UserError:
        raise
    except RecursionError as error:
        raise UserError(f"{path} {what}", "it is nested too deep", fix) from error
    except (YAMLError, OmegaConfBaseException, OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} {what}", error, fix) from error
