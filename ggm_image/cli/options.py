"""Options and checks that several commands share. Nothing here imports torch before a command runs.

The options of a command stand in three groups of its ``--help``: what it works on, how, and where the result goes.

    @click.command(cls=GroupedCommand)
    @what(MODEL, class_option("Class to sample."))
    @how(sampler_options, seed_option, device_option)
    @where(overwrite_option, json_option)
    def sample(...): ...
"""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from ggm_image.errors import UserError
from ggm_image.runtime.devices import check_device_name, choose_device
from ggm_image.sampler.counts import check_seed

F = TypeVar("F", bound=Callable[..., Any])


GROUPS = ("What", "How", "Where")
"""Titles of the groups of options, in their order in ``--help``."""


class GroupedCommand(click.Command):
    """A command whose ``--help`` lists its options, with their defaults, by the groups of `what`, `how` and `where`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.context_settings = {"show_default": True, **self.context_settings}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: dict[str, list[tuple[str, str]]] = {title: [] for title in (*GROUPS, "Other")}
        for parameter in self.get_params(ctx):
            if not isinstance(parameter, click.Option):
                continue  # an argument stands in the line of usage
            if (record := parameter.get_help_record(ctx)) is not None:
                rows[getattr(parameter, "group", "Other")].append(record)
        for title, records in rows.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def _grouped(title: str, options: Sequence[Callable[[F], F]]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        already = len(getattr(function, "__click_params__", ()))
        for option in reversed(options):
            function = option(function)
        for parameter in getattr(function, "__click_params__", ())[already:]:
            parameter.group = title
        return function

    return decorate


def what(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Options that say what a command works on or makes."""
    return _grouped("What", options)


def how(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Options that say how it does it."""
    return _grouped("How", options)


def where(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Options that say where the result goes, and in which form."""
    return _grouped("Where", options)


class NameOf(click.Choice):
    """A name of a registry, which plugins may add to after the command was defined."""

    def __init__(self, registry: Mapping[str, Any]) -> None:
        self.registry = registry
        super().__init__(tuple(registry))

    @property
    def choices(self) -> tuple[str, ...]:
        return tuple(self.registry)

    @choices.setter
    def choices(self, value: Sequence[str]) -> None:
        """`click.Choice` sets them once; the registry is what counts."""


class _Seed(click.ParamType):
    """An integer of at least 0, see `check_seed`."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        with contextlib.suppress(ValueError):  # reported below
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
        help="cpu, cuda, cuda:N or mps; CUDA if available by default.",
    )(function)


def own_device(device: str | None) -> str:
    """The device of ``--device``, see `choose_device`."""
    return str(choose_device(device))


def seed_option(function: F) -> F:
    """``--seed``, passed as ``seed: int``."""
    return click.option("--seed", type=SEED, default=0, help="Seed of all random numbers.")(function)


def shard_option(function: F) -> F:
    """``--shard``, passed as ``shard: str | None``; give it to `ggm_image.runtime.ranks.rank_and_world_size`."""
    return click.option("--shard", metavar="I/N", help="Part I of N, counted from 0; torchrun sets it.")(function)


def overwrite_option(function: F) -> F:
    """``--overwrite``, passed as ``overwrite: bool``; give it to `ggm_image.io.outputs.Gate`."""
    return click.option("--overwrite", is_flag=True, help="Replace files that this command did not write.")(function)


def ignored_seed_option(function: F) -> F:
    """``--seed`` of a command without random numbers, passed as ``seed: int``: scripts give every command one."""
    return click.option(
        "--seed", type=SEED, default=0, show_default=False, help="Ignored: this command is deterministic."
    )(function)


def out_option(default: str | None = None, help: str = "") -> Callable[[F], F]:
    """``--out``, passed as ``out: Path``."""
    return click.option("--out", type=click.Path(path_type=Path), default=default, help=help)


def count_option(default: int, help: str, *, least: int = 1, most: int | None = None) -> Callable[[F], F]:
    """``-n``, passed as ``count: int``."""
    return click.option("-n", "count", type=click.IntRange(least, most), default=default, help=help)


def batch_size_option(help: str, default: int | None = None) -> Callable[[F], F]:
    """``--batch-size``, passed as ``batch_size: int``, or None where it has no default and is not given."""
    return click.option("--batch-size", type=click.IntRange(1, 1 << 16), default=default, help=help)


def skip_bad_option(function: F) -> F:
    """``--skip-bad``, passed as ``skip_bad: bool``."""
    return click.option("--skip-bad", is_flag=True, help="Name and leave out images that cannot be read.")(function)


def json_option(function: F) -> F:
    """``--json``, passed as ``as_json: bool``."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(function)


def print_json(value: Any) -> None:
    """Print a result on stdout as JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
