"""The denoising as an animation: what every image of the first batch looks like after each step."""

import io
from pathlib import Path

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from ggm_image.image.io import to_pil
from ggm_image.image.visualize import image_grid
from ggm_image.io.files import atomic_path
from ggm_image.io.marks import mark_gif
from ggm_image.pipelines.image import Model

FRAMES = 64
FRAME_MS, LAST_FRAME_MS = 60, 2000


class Trajectory:
    """Collects the steps of a run; give `record` to `Model.sample_tokens` as its callback."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.steps: list[Int[Tensor, "b l"]] = []
        self._complete = False

    def record(self, t: int, tokens: Int[Tensor, "b l"]) -> None:
        """Keep the tokens of one step; t counts down to 0. Batches after the first are left out."""
        if not self._complete:
            self.steps.append(tokens)
        self._complete = self._complete or t == 0

    def save(self, path: Path) -> None:
        """Write an animated GIF of at most 64 frames; sites without a token yet are grey."""
        chosen = torch.linspace(0, len(self.steps) - 1, min(FRAMES, len(self.steps))).round().long()
        frames = [to_pil(image_grid(partial_images(self.model, self.steps[k]))) for k in chosen.tolist()]
        file = io.BytesIO()
        frames[0].save(
            file,
            format="GIF",
            save_all=True,
            append_images=frames[1:],
            duration=[FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS],
            loop=0,
        )
        with atomic_path(path) as temporary:
            temporary.write_bytes(mark_gif(file.getvalue(), "sample"))


def partial_images(model: Model, tokens: Int[Tensor, "b l"]) -> UInt8[Tensor, "b 3 h w"]:
    """The images of unfinished tokens, as a sampler's callback gets them; sites without a token yet are grey."""
    height, width = model.grid
    cell, codes = model.tokenizer.downscale, model.tokenizer.codebook_size
    grids = tokens.view(-1, height, width)
    images = model.decode(grids.clamp(max=codes - 1))
    empty = (grids == codes).repeat_interleave(cell, 1).repeat_interleave(cell, 2)
    return images.masked_fill(empty[:, None], 128)
