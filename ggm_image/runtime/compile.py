"""Whether torch.compile works here (it needs a C++ compiler, or Triton on a GPU), and whether it saves time."""

import functools
from typing import Any

import torch

from ggm_image.errors import printable

COMPILED_MINUTES, COMPILED_STEPS = 10.0, 1000
"""Length of the shortest run that is compiled: compiling takes one minute or two."""
UNTIMED_STEPS = 2
"""Steps of a compiled run before its clock starts: compiling is not training, and must not lower the learning rate."""
RECOMPILATIONS = 64
"""All blocks of a network share one cache of compiled code, and dynamo's limit is 8."""


def compile_pays(
    asked: bool | str, device: torch.device, precision: str, *, steps: int, minutes: float | None
) -> tuple[bool, str]:
    """Whether to compile a training run, and a line that says why.

    Measured on CPUs: with bf16 products compiled code is faster; in float32 it gains nothing, and the first step takes
    90 seconds more.

    Args:
        asked: true, false or ``auto``, as in the config.
        minutes: that the run takes at most; None without such a limit.

    Returns:
        The answer, and the line; empty where the config states the answer.
    """
    if asked != "auto":
        return bool(asked), ""
    if steps < COMPILED_STEPS or (minutes is not None and minutes < COMPILED_MINUTES):
        length = f"{steps:,} steps" if steps < COMPILED_STEPS else f"{minutes:g} minutes"
        return False, f"compile: no, a run of {length} is too short to gain by it"
    if device.type == "cuda" or (device.type == "cpu" and precision == "bf16-mixed"):
        return True, f"compile: yes, for {precision} on {device.type}; the first steps take a minute or two longer"
    return False, f"compile: no, {precision} on {device.type} gains nothing by it"


def allow_recompilations() -> None:
    """Raise dynamo's limit of compilations for one function, which is meant for a function of one module."""
    import torch._dynamo

    config: Any = torch._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # the name before torch 2.7
    setattr(config, name, max(getattr(config, name), RECOMPILATIONS))


@functools.cache
def cannot_compile(device: str) -> str:
    """Why torch.compile does not work on a device, or an empty string; it compiles one addition to find out."""

    @torch.compile
    def add(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    try:
        add(torch.zeros(8, device=device))
    except Exception as error:  # each backend fails in its own ways, and all mean the same here
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        return printable(first)
    return ""
