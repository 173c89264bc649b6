"""Weights files: what is widened when they are read, and what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ggm_image.errors import UserError
from ggm_image.io.safetensors import load_weights, read_weights


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_is_widened_without_loss(dtype: torch.dtype, tmp_path: Path) -> None:
    """Every value of the format. Seen to fail with the tensors as they are: isfinite does not know float8."""
    every = torch.arange(256, dtype=torch.uint8).view(dtype)
    finite = every[torch.isfinite(every.float())].clone()
    layer = nn.Linear(len(finite), 1, bias=False)
    save_file({"weight": finite[None]}, tmp_path / "a.safetensors")
    assert read_weights(tmp_path / "a.safetensors")["weight"].dtype == torch.bfloat16
    load_weights(layer, tmp_path / "a.safetensors")
    assert torch.equal(layer.weight, finite.float()[None])
    finite[3] = float("nan")
    save_file({"weight": finite[None]}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match="must be finite"):
        load_weights(layer, tmp_path / "a.safetensors")
