"""What every pipeline needs and no pixels: generators, padding, precision, one batch of a sampler."""

import hashlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from ggm_image.sampler import Callback, Denoiser, guided, truncated
from ggm_image.sampler.registry import find_sampler
from ggm_image.sampler.settings import Settings


def image_generator(seed: int, index: int) -> torch.Generator:
    """The generator of image ``index`` under ``seed``; different for every pair."""
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def seed_of_window(seed: int, turn: int) -> int:
    """The seed of a window after the first, different for every pair."""
    return int.from_bytes(hashlib.sha256(f"{seed}/window/{turn}".encode()).digest()[:8], "big")


def rows_per_call(device: torch.device, sites: int) -> int:
    """Images in one network call, padded where there are fewer, so that image k is the same for any n.

    Kernels round differently for other numbers of rows. So the number is fixed for a model on a device, part of its
    `identity`, and small: a single image costs as much as a full call.

    Args:
        sites: of the grid. A GPU is kept busy by few rows of a large grid.
    """
    if device.type != "cuda":
        return 16
    return 128 if sites <= 64 else 64 if sites < 256 else 32


def pad_batch(rows: Tensor, size: int) -> Tensor:
    """The batch filled up to ``size`` with its last row."""
    return torch.cat([rows, rows[-1:].expand(size - len(rows), *rows.shape[1:])])


def without_padding(callback: Callback, rows: int) -> Callback:
    """The callback without the padding of the batch."""
    return lambda t, tokens: callback(t, tokens[:rows].cpu())


def autocast(device: torch.device, half: bool) -> AbstractContextManager[Any]:
    """Matrix products in bfloat16 if ``half``; otherwise the caller's precision."""
    return torch.autocast(device.type, torch.bfloat16) if half else nullcontext()


def sample_batch(
    denoiser: Denoiser,
    settings: Settings,
    generators: list[torch.Generator],
    *,
    device: torch.device,
    half: bool,
    null_label: int | None = None,
    **arguments: Any,
) -> Int[Tensor, "b l"]:
    """One token grid for each generator, by the sampler, guidance and truncation of the settings.

    Args:
        generators: one a row.
        half: see `autocast`.
        null_label: the label of no class, for guidance; None for a network without classes.
        **arguments: further ones of `ggm_image.sampler.registry`'s ``sample_by_settings``.
    """
    if null_label is not None:
        denoiser = guided(denoiser, settings.guidance, null_label, power=settings.guidance_power)
    denoiser = truncated(denoiser, temperature=settings.temperature, top_k=settings.top_k, top_p=settings.top_p)
    sampler = find_sampler(settings.order).load()
    with torch.inference_mode(), autocast(device, half):
        tokens: Tensor = sampler(denoiser, settings, len(generators), generator=generators, device=device, **arguments)
    return tokens
