"""Options and checks that several commands share. Nothing here imports torch before a command runs."""

import contextlib
import json
from collections.abc import Callable
from typing import Any, TypeVar

import click

from ggm_image.errors import UserError
from ggm_image.runtime.devices import check_device_name, choose_device
from ggm_image.sampler.settings import check_seed

F = TypeVar("F", bound=Callable[..., Any])


class _Seed(click.ParamType):
    """An integer of at least 0, see `check_seed`."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        with contextlib.suppress(ValueError):  # which is said below
            value = int(value) if isinstance(value, str) and len(value) < 20 else value
        seed = check_seed(value)
        if seed < 0:
            raise UserError("a seed must be at least 0", f"got {seed}", "use for example 0")
        return seed


SEED = _Seed()


def device_option(function: F) -> F:
    """``--device``, passed as ``device: str | None``; give it to `own_device`."""
    return click.option(
        "--device",
        metavar="NAME",
        callback=lambda _context, _parameter, value: value and check_device_name(value),
        help="cpu, cuda, cuda:N or mps; CUDA by default where it is available.",
    )(function)


def own_device(device: str | None) -> str:
    """The device of ``--device``, see `choose_device`."""
    return str(choose_device(device))


def seed_option(function: F) -> F:
    """``--seed``, passed as ``seed: int``."""
    return click.option("--seed", type=SEED, default=0, show_default=True, help="Seed of all random draws.")(function)


def shard_option(function: F) -> F:
    """``--shard``, handed on as ``shard: str | None``; give it to `ggm_image.runtime.ranks.rank_and_world_size`."""
    return click.option(
        "--shard", metavar="I/N", help="This process's share, counted from 0; torchrun's processes have theirs."
    )(function)


def overwrite_option(function: F) -> F:
    """``--overwrite``, passed as ``overwrite: bool``; give it to `ggm_image.io.outputs.Gate`."""
    return click.option("--overwrite", is_flag=True, help="Replace files that this command did not write.")(function)


def json_option(function: F) -> F:
    """``--json``, handed on as ``as_json: bool``."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(function)


def print_json(value: Any) -> None:
    """Print a result on stdout as JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
