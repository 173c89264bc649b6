"""What every pipeline needs and no pixels: generators, padding, precision."""

import hashlib

import torch
from torch import Tensor

from ggm_image.sampler import Callback


def image_generator(seed: int, index: int) -> torch.Generator:
    """The generator of image ``index`` under ``seed``; different for every pair."""
    digest = hashlib.sha256(f"{seed}/{index}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def seed_of_window(seed: int, turn: int) -> int:
    """The seed of a window after the first, different for every pair."""
    return int.from_bytes(hashlib.sha256(f"{seed}/window/{turn}".encode()).digest()[:8], "big")


def rows_per_call(device: torch.device, sites: int) -> int:
    """Images in one network call, padded where there are fewer, so that image k is the same whatever n is.

    Kernels round differently for other numbers of rows. So the number is fixed for a model on a device, part of its
    `identity`, and small: a single image costs as much as a full call.

    Args:
        device: of the network.
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
