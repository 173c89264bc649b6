"""Options and checks that several commands share. Nothing here imports torch before a command runs."""

import difflib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click

from ggm_image.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])


def device_option(function: F) -> F:
    """``--device``, handed on as ``device: str | None``; give it to `resolve_device`."""
    return click.option(
        "--device", metavar="NAME", help="cpu, cuda, cuda:N or mps; the GPU by default where there is one."
    )(function)


def seed_option(function: F) -> F:
    """``--seed``, handed on as ``seed: int``."""
    return click.option(
        "--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of all random draws."
    )(function)


def share_option(function: F) -> F:
    """``--shard``, handed on as ``shard: str | None``; give it to `ggm_image.processes.share`."""
    return click.option(
        "--shard", metavar="I/N", help="This process's share, counted from 0; torchrun's processes have theirs."
    )(function)


def json_option(function: F) -> F:
    """``--json``, handed on as ``as_json: bool``."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(function)


def resolve_device(device: str | None) -> str:
    """The device to run on.

    Args:
        device: what ``--device`` said; None for CUDA where it is available, else the CPU.

    Raises:
        UserError: no such device, or none on this machine.
    """
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not (number.isdecimal() and len(number) < 4)):
        near = nearest(kind, ["cpu", "cuda", "mps"]) or "cpu, cuda, cuda:N or mps"
        raise UserError("no such device", device, f"use {near}")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= count:
            fix = f"use cuda:0 to cuda:{count - 1}, or cpu" if count else "use --device cpu"
            raise UserError("device is not available", f"{device}, {count} CUDA devices found", fix)
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("device is not available", device, "use --device cpu")
    return device


def own_device(device: str | None) -> str:
    """As `resolve_device`; each of torchrun's processes has a GPU of its own."""
    import torch

    found, number = resolve_device(device), os.environ.get("LOCAL_RANK", "")
    return f"cuda:{int(number) % torch.cuda.device_count()}" if found == "cuda" and number.isdecimal() else found


def check_output_folder(folder: Path) -> None:
    """Raise UserError unless ``folder`` does not exist or is an empty folder."""
    if folder.exists() and not folder.is_dir():
        raise UserError("output must be a folder", f"{folder} is a file", "choose another name")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError("output folder must be new or empty", folder, "choose another one or remove it")


def nearest(name: str, known: Iterable[str]) -> str:
    """The names most like ``name``, as ``a or b``; empty if none is like it."""
    return " or ".join(difflib.get_close_matches(name, list(known), n=3, cutoff=0.5))


def print_json(value: Any) -> None:
    """Print a result on stdout as JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
