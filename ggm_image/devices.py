"""Which device to run on: one rule for the library and the command line."""

import torch

from ggm_image.errors import UserError


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """The device of a name, checked to be there.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:N`` or ``mps``. None and ``auto`` are CUDA where there is a GPU, else the CPU.
            Apple's GPU is used only when it is named.

    Raises:
        UserError: no such device, or this machine has none.
    """
    if name is None or str(name) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = str(name).partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and not (number.isdecimal() and len(number) < 4)):
        raise UserError("no such device", name, "use cpu, cuda, cuda:N or mps")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= count:
            fix = f"use cuda:0 to cuda:{count - 1}, or cpu" if count else "use cpu"
            raise UserError("device is not available", f"{name}, {count} CUDA devices found", fix)
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("device is not available", name, "use cpu")
    return torch.device(str(name))
