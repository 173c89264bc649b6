"""Token grids from a network: sampled in batches of one size, and judged token by token.

Legend: ``n`` grids, ``l`` = h w sites, ``v`` codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.pipelines.base import autocast, image_generator, pad_batch, sample_batch, without_padding
from ggm_image.sampler import Callback
from ggm_image.sampler.settings import Settings
from ggm_image.sampler.token_signal import signal_probability

if TYPE_CHECKING:
    from ggm_image.pipelines.token_model import TokenModel


def sample_grids(
    model: TokenModel,
    labels: list[int],
    *,
    seed: int,
    settings: Settings,
    first: int,
    known: Any,
    grid: tuple[int, int],
    callback: Callback | None,
    on_batch: Callable[[Int[Tensor, "m h w"]], None] | None,
    batch: int,
    observation: Float[Tensor, "n l v"] | None,
) -> Int[Tensor, "n h w"]:
    """`TokenModel.sample_tokens` with its arguments checked and its defaults filled in."""
    n, (height, width) = len(labels), grid
    result = torch.empty(n, height, width, dtype=torch.int64)
    # A network call visits the same sites in all its rows, so only rows with the same known sites share a batch.
    groups = [torch.arange(n)]
    if known is not None:
        known = _known_rows(known, n, height * width)
        groups = _same_pattern(known < 0)
    if len(groups) > 1 and callback is not None:
        got = f"{len(groups)} patterns"
        raise UserError("a callback needs the same known sites in every image", got, "sample them one by one")
    for rows in (part for group in groups for part in group.split(batch)):
        if not len(rows):
            continue
        # Each image has a generator of its own. Padding rows take those of the images after the last one.
        padding = batch - len(rows)
        indices = [first + k for k in rows.tolist()] + [first + n + k for k in range(padding)]
        tokens = sample_batch(
            model.denoiser(height, width),
            settings,
            [image_generator(seed, index) for index in indices],
            device=model.device,
            half=model.half,
            null_label=model.null_label,
            height=height,
            width=width,
            codebook_size=model.tokenizer.codebook_size,
            labels=torch.tensor([labels[k] for k in rows.tolist()] + [model.null_label] * padding),
            known=None if known is None else pad_batch(known[rows], batch),
            callback=callback and without_padding(callback, len(rows)),
            observation=None if observation is None else pad_batch(observation[rows], batch).to(model.device),
        )
        result[rows] = tokens[: len(rows)].view(-1, height, width).cpu()
        if on_batch is not None:
            on_batch(result[rows])
    return result


def _known_rows(known: Any, n: int, sites: int) -> Int[Tensor, "n l"]:
    """Known tokens of every row, on the CPU."""
    rows = torch.as_tensor(known).cpu()
    if (
        rows.is_floating_point()
        or rows.ndim not in (1, 2)
        or rows.shape[-1] != sites
        or rows[..., 0].numel() not in (1, n)
    ):
        got, fix = f"{rows.dtype} {tuple(rows.shape)}", f"pass integers ({sites},) or ({n}, {sites})"
        raise UserError("known tokens do not fit", got, fix)
    return rows.to(torch.int64).expand(n, -1)


def _same_pattern(unknown: Bool[Tensor, "n l"]) -> list[Int[Tensor, " m"]]:
    """Row numbers, those of equal rows together; in the order of the first of each."""
    groups: dict[bytes, list[int]] = {}
    for k, row in enumerate(unknown.numpy()):
        groups.setdefault(row.tobytes(), []).append(k)
    return [torch.tensor(rows) for rows in groups.values()]


def signal_of_grids(
    model: TokenModel, tokens: Int[Tensor, "n h w"], labels: Int[Tensor, " n"], *, level: float, block: int, batch: int
) -> Float[Tensor, "n h w"]:
    """`TokenModel.signal_of_tokens` with its defaults filled in; on the CPU."""
    n, height, width = tokens.shape
    result = torch.empty(n, height, width, dtype=torch.float32)
    for start in range(0, n, batch):
        rows, classes = tokens[start : start + batch], labels[start : start + batch]
        with torch.inference_mode(), autocast(model.device, model.half):
            found = signal_probability(
                model.denoiser(height, width),
                pad_batch(rows, batch).flatten(1).to(model.device),
                height=height,
                width=width,
                codebook_size=model.tokenizer.codebook_size,
                level=level,
                block=min(block, height * width),
                labels=pad_batch(classes, batch).to(model.device),
            )
        result[start : start + batch] = found[: len(rows)].view(-1, height, width).cpu()
    return result
