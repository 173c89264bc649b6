"""Config dataclasses filled from YAML and ``key=value``; a wrong key names the nearest right one."""

import difflib
import math
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ggm_image.errors import UserError
from ggm_image.io.configs import find_config
from ggm_image.io.files import write_text
from ggm_image.io.outputs import RUN_HEAD
from ggm_image.io.yaml import read_yaml

C = TypeVar("C")


def load_config(schema: type[C], path: str | Path, overrides: Sequence[str] = ()) -> C:
    """Fill a config dataclass from a YAML file and overrides.

    Args:
        schema: the dataclass.
        path: YAML file, or the name of a shipped config.
        overrides: ``key=value`` with dots between levels; values are YAML.

    Returns:
        An instance of ``schema``, all of whose own checks have passed.

    Raises:
        UserError: the file cannot be read, a key is unknown (the nearest right one is named), a value has the
            wrong type, or a check of the dataclass fails.
    """
    path = find_config(path)
    written = read_yaml(path, "must be YAML", "compare it with those in configs/")
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
    known = _known_keys(schema)
    try:
        for part in (written, changes):
            _check_keys(part, schema, "", known)
        merged = OmegaConf.merge(written, changes)
    except (OmegaConfBaseException, TypeError, RecursionError) as error:
        raise UserError("config is not valid", f"{path}: {error}", "compare it with those in configs/") from error
    return build_config(schema, merged)


def build_config(schema: type[C], values: Any) -> C:
    """An instance of the config dataclass ``schema`` from nested values; errors as of `load_config`."""
    try:
        _check_keys(OmegaConf.create(values), schema, "", _known_keys(schema))
        result = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
    except UserError:
        raise
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        key = getattr(error, "full_key", None)
        what = f"config key {key} has the wrong type" if key else "config is not valid"
        raise UserError(what, str(error).splitlines()[0], "compare it with the files in configs/") from error
    assert isinstance(result, schema)
    return result


def plain(config: Any) -> dict[str, Any]:
    """A config as nested plain values, fully resolved."""
    values = OmegaConf.to_container(OmegaConf.structured(config), resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def save_config(path: str | Path, config: Any) -> None:
    """Write a config, fully resolved, as YAML."""
    write_text(path, f"{RUN_HEAD}the config as it was used\n{OmegaConf.to_yaml(OmegaConf.create(plain(config)))}")


def _known_keys(schema: Any, prefix: str = "") -> list[str]:
    hints, keys = get_type_hints(schema), []
    for entry in fields(schema):
        keys.append(prefix + entry.name)
        if is_dataclass(hints[entry.name]):
            keys += _known_keys(hints[entry.name], prefix + entry.name + ".")
    return keys


def _check_keys(node: Any, schema: Any, prefix: str, known: list[str]) -> None:
    hints = get_type_hints(schema)
    for key in node:
        full = f"{prefix}{key}"
        if key not in hints:
            last = {k.rsplit(".", 1)[-1]: k for k in reversed(known)}
            near = difflib.get_close_matches(full, known, n=1) or [
                last[k] for k in difflib.get_close_matches(str(key), list(last), n=1)
            ]
            fix = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(hints)}"
            raise UserError("unknown config key", full, fix)
        if is_dataclass(hints[key]):
            if not isinstance(node.get(key), DictConfig):
                raise UserError(f"config key {full} must hold keys", node.get(key), f"write {full}.KEY=VALUE")
            _check_keys(node[key], hints[key], f"{full}.", known)


MOST_SEED = 1 << 40
"""Seeds are multiplied and added to where torch takes 64 bits."""
_MOST = {
    "batch_size": 1 << 20, "seed": MOST_SEED, "weight_decay": 1000, "discriminator_width": 1 << 12,
    "discriminator_layers": 8,
}  # fmt: skip


def check_numbers(
    config: Any,
    prefix: str,
    *,
    positive: Sequence[str] = (),
    natural: Sequence[str] = (),
    shares: Sequence[str] = (),
) -> None:
    """Check the numbers of a config dataclass: they must be finite, and lie where their kind does.

    Those of `_MOST` and ``max_minutes`` are checked wherever there are such.

    Raises:
        UserError: the first that does not.
    """
    for name in positive:
        value = getattr(config, name)
        check(math.isfinite(value) and value > 0, f"{prefix}.{name} must be positive", value)
    for name in natural:
        value = getattr(config, name)
        check(math.isfinite(value) and value >= 0, f"{prefix}.{name} must not be negative", value)
    for name in shares:
        check(0 <= getattr(config, name) <= 1, f"{prefix}.{name} must lie in [0, 1]", getattr(config, name))
    for name, most in _MOST.items():
        value = getattr(config, name, 0)
        check(0 <= value <= most, f"{prefix}.{name} must lie in [0, {most:,}]", value)
    minutes = getattr(config, "max_minutes", None)
    check(minutes is None or minutes > 0, f"{prefix}.max_minutes must be positive", minutes)


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise UserError unless a config's entry is one of a few words."""
    check(value in allowed, f"{name} must be one of {', '.join(allowed)}", value)


def check(good: bool, what: str, got: object) -> None:
    if not good:
        raise UserError(what, got, "change it in the config or give key=value")
