"""Read and write weights as safetensors, without pickle. Writes are atomic; values are checked when they are loaded."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ggm_image.errors import UserError
from ggm_image.io.files import atomic_path, disk_errors


def save_weights(path: Path, state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Write a state dict, its floating-point values as ``dtype``, atomically."""
    stored = {
        name: value.detach().cpu().to(dtype if value.is_floating_point() else value.dtype).contiguous()
        for name, value in state.items()
    }
    with atomic_path(path) as temporary, disk_errors(path):
        save_file(stored, temporary)


_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; those in float8 as bfloat16, which holds all of their values."""
    if not path.is_file():
        raise UserError("file of weights not found", path, "check the path")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} must be a whole safetensors file", str(error), "copy it again") from error
    # Few operations know float8: it only halves a file.
    return {name: value.bfloat16() if value.dtype in _FLOAT8 else value for name, value in tensors.items()}


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a safetensors file into a module of exactly its shapes; half precision and float8 are widened."""
    state = read_weights(path)
    check_shapes(module, {name: tuple(value.shape) for name, value in state.items()}, path)
    load_state(module, state, path)


def check_shapes(module: nn.Module, found: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Raise UserError unless a file holds tensors of exactly the module's names and shapes."""
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    if wanted != found:
        name = min(name for name, _ in set(wanted.items()) ^ set(found.items()))
        raise UserError(
            f"{path} must fit the architecture in its config.yaml",
            f"{name} is {found.get(name, 'missing')}, expected {wanted.get(name, 'nothing')}",
            "keep the two files of one model together",
        )


def load_state(module: nn.Module, state: Mapping[str, Tensor], path: Path, *, assign: bool = False) -> None:
    """Load tensors that came from ``path``; UserError if a value is not finite.

    Args:
        assign: put the tensors themselves in place of the module's, which may be on the meta device.
    """
    for name, value in state.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise UserError(f"weights in {path} must be finite", f"{name} holds NaN or infinity", "copy it again")
    module.load_state_dict(state, assign=assign)
