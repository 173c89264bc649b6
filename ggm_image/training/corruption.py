"""Add noise to clean tokens on their device, without synchronising with it."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def cumulative_noise(noise: Float[Tensor, " v"]) -> Float[Tensor, " v"] | None:
    """What `replace_by_noise` needs of the noise: None for the uniform distribution. Waits for the device."""
    return None if bool((noise == noise[0]).all()) else noise.double().cumsum(0)


def replace_by_noise(
    x_0: Int[Tensor, "b l"],
    levels: Float[Tensor, "b l"],
    cumulative: Float[Tensor, " v"] | None,
    codebook_size: int,
    *,
    generator: torch.Generator,
) -> Int[Tensor, "b l"]:
    """`glauber.add_noise` without its checks, which wait for the device; on a CPU with the same result.

    Args:
        levels: probability of each token to stay.
        cumulative: of `cumulative_noise`.
    """
    u = torch.rand((2, *x_0.shape), generator=generator, device=x_0.device, dtype=torch.float64)
    if cumulative is None:
        sampled = (u[1] * codebook_size).long()
    else:
        sampled = torch.searchsorted(cumulative, u[1] * cumulative[-1], right=True)
    return torch.where(u[0] < levels, x_0, sampled)
