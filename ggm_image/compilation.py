"""Whether torch.compile works on a machine: it needs a C++ compiler, and Triton on a GPU."""

import functools

import torch

from ggm_image.errors import printable


@functools.cache
def cannot_compile(device: str) -> str:
    """Why torch.compile does not work on a device, or an empty string; it compiles one addition to find out.

    Args:
        device: type of the device, e.g. ``cpu``.
    """

    @torch.compile
    def add(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    try:
        add(torch.zeros(8, device=device))
    except Exception as error:  # each backend fails in its own ways, and all mean the same here
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return printable(first)
    return ""
