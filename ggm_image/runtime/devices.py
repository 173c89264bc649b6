"""Choose the device that a model runs on, for the command line and the library."""

import difflib
import os
import re
from typing import TYPE_CHECKING

from ggm_image.errors import UserError

if TYPE_CHECKING:
    import torch

KINDS = ("cpu", "cuda", "mps")


def check_device_name(name: str) -> str:
    """The name of a device, checked without importing torch; whether this machine has it is not looked up."""
    if not re.fullmatch(r"(cpu|cuda|mps)(:[0-9]{1,3})?", name):
        near = " or ".join(difflib.get_close_matches(name.partition(":")[0], KINDS, n=3, cutoff=0.5))
        raise UserError("no such device", name, f"use {near or 'cpu, cuda, cuda:N or mps'}")
    return name


def resolve_device(name: "str | torch.device | None" = None) -> str:
    """The device to run on.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``. None and ``auto`` are CUDA where there is a GPU, else the CPU;
            Apple's GPU is used only when it is named.
    """
    import torch

    if name is None or str(name) == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = check_device_name(str(name)).partition(":")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= count:
            fix = f"use cuda:0 to cuda:{count - 1}, or cpu" if count else "use cpu"
            raise UserError("device is not available", f"{name}, {count} CUDA devices found", fix)
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("device is not available", name, "use cpu")
    return str(name)


def choose_device(name: "str | torch.device | None" = None) -> "torch.device":
    """The device to run on, as `resolve_device` finds it; each of torchrun's processes gets a GPU of its own."""
    import torch

    found, number = resolve_device(name), os.environ.get("LOCAL_RANK", "")
    if found == "cuda" and number.isdecimal():
        found = f"cuda:{int(number) % torch.cuda.device_count()}"
    return torch.device(found)
