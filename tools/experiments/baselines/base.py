"""What the methods share: the network's signature, and random numbers."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

LOWEST_LEVEL = 1e-3
"""Of D3PM and SEDD: the chain starts from pure noise at this level; SEDD's weight is 1/level, and its step divides."""

Network = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""network(tokens (b, l), levels (b, l), sites (k,), labels (b,) or None) -> (b, k, v)."""


def sample_uniforms(
    generators: Sequence[torch.Generator], shape: tuple[int, ...], device: torch.device | str
) -> Float[Tensor, "*n b l"]:
    """Numbers in [0, 1) of shape (*n, l) for each generator, stacked before the last axis; generated on the CPU."""
    uniforms = torch.stack([torch.rand(shape, generator=g, dtype=torch.float64) for g in generators], dim=-2)
    return uniforms.to(device)
