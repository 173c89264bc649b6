"""The signal map of an image of any size: judged in windows of the model's size, averaged where they overlap."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from ggm_image.image.windows import plan_windows, window_side
from ggm_image.pipelines.call_counter import OnProgress
from ggm_image.runtime.progress import progress

if TYPE_CHECKING:
    from ggm_image.pipelines.token_model import TokenModel


def signal_map(
    model: TokenModel,
    pixels: UInt8[Tensor, "3 h w"],
    label: int,
    *,
    level: float,
    block: int,
    on_progress: OnProgress | None = None,
) -> Float[Tensor, "rows columns"]:
    """See `Model.signal`, whose work this is once the image is open and the class is a label."""
    cell = model.tokenizer.downscale
    sides = [window_side(side, side, cell) for side in pixels.shape[1:]]
    total, count = torch.zeros(2, sides[0] // cell, sides[1] // cell)
    windows = plan_windows(np.ones(sides, dtype=bool), model.image_size, cell, context=0, step=cell)
    # Few windows need no full batch: all their calls have as many rows as there are windows.
    size = min(model.kernel_batch, len(windows))
    labels = torch.tensor([label])
    parts = [windows[start : start + size] for start in range(0, len(windows), size)]
    for done, part in enumerate(progress(parts, total=len(parts), unit="batch", label="signal")):
        if on_progress is not None:
            on_progress(done, len(parts))
        tokens = model.encode(torch.stack([pixels[:, rows, columns] for rows, columns in (w.slices for w in part)]))
        judged = model.signal_of_tokens(tokens, labels.expand(len(part)), level=level, block=block, batch=size)
        for window, probabilities in zip(part, judged, strict=True):
            inside = tuple(slice(side.start // cell, side.stop // cell) for side in window.slices)
            total[inside] += probabilities
            count[inside] += 1
    if on_progress is not None:
        on_progress(len(parts), len(parts))
    return total / count
