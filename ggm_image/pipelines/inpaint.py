"""Inpainting by windows, from coarse to fine: what `Model.inpaint` runs once its arguments are checked."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor

from ggm_image.image.blending import blend_seam, composite
from ggm_image.image.io import rgb_pixels, to_pil
from ggm_image.image.masks import fill_unknown, known_tokens, token_mask
from ggm_image.image.preprocess import to_model
from ggm_image.image.scales import ONE_SCALE, InpaintingPlan, enlarge, pyramid
from ggm_image.pipelines.base import seed_of_window
from ggm_image.pipelines.call_counter import CallCounter, OnProgress
from ggm_image.runtime.progress import progress_bar
from ggm_image.sampler import Callback
from ggm_image.sampler.observation import latent_log_likelihood
from ggm_image.sampler.settings import Settings

if TYPE_CHECKING:
    from ggm_image.pipelines.image import Model

TAU = 1.0
"""How far a finer scale may depart from the coarser one: the default of `Model.inpaint`, chosen by measurement."""

SERVING = {64: "photos64", 256: "imagenet256"}
"""Shipped configs of models for photographs, by the side of their images in pixels."""


@dataclass(frozen=True)
class Inpainter:
    """One inpainting run.

    Attributes:
        labels: (n,) the class of each sample; used at the coarsest scale only.
        settings: of the sampler; guidance is used at the coarsest scale only.
        dilate: pixels by which the resampled tokens reach beyond the hole.
        tau: see `latent_log_likelihood`.
        on_progress: told the network calls that are done.
    """

    model: Model
    labels: list[int]
    seed: int
    settings: Settings
    dilate: int
    tau: float
    on_progress: OnProgress | None = None

    def network_calls(self, plan: InpaintingPlan) -> int:
        """Steps of the sampler over all scales, windows and batches of a plan."""
        cell, steps = self.model.tokenizer.downscale, 0
        for scale in plan.scales:
            missing = scale.mask.copy()
            for window in scale.windows:
                rows, columns = window.slices
                steps += self.settings.calls(int(token_mask(missing[rows, columns], cell, dilate=self.dilate).sum()))
                missing[rows, columns] = False
        return steps * -(-len(self.labels) // self.model.paint_batch)

    def images(
        self, original: Image.Image, mask: Bool[np.ndarray, "h w"], plan: InpaintingPlan, *, feather: int
    ) -> list[Image.Image]:
        """The samples as whole images: ``original`` outside the mask, bit for bit."""
        # The model only sees the crop that the plan chose; the rest of the image is copied.
        crop = plan.crop
        box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
        samples = self.run(rgb_pixels(original.crop(box)), plan)
        origin = (crop.top, crop.left)
        return [composite(original, to_pil(new), mask, feather=feather, origin=origin) for new in samples]

    def run(self, image: UInt8[Tensor, "3 h w"], plan: InpaintingPlan) -> UInt8[Tensor, "n 3 h w"]:
        """Samples of the crop of a plan; known pixels are the image's, pixels in the hole are never read."""
        canvas: UInt8[Tensor, "n 3 h w"] | None = None
        turn = 0
        counter = self.on_progress and CallCounter(self.on_progress, self.network_calls(plan))
        with progress_bar(total=plan.calls, unit="window", label="inpaint") as advance:
            for scale, known in pyramid(image, plan):
                observed = canvas is not None
                canvas = self._start(canvas, known, scale.mask)
                missing = scale.mask.copy()
                for window in scale.windows:
                    rows, columns = window.slices
                    part, unknown = canvas[..., rows, columns], missing[rows, columns]
                    seed = self.seed if turn == 0 else seed_of_window(self.seed, turn)
                    canvas[..., rows, columns] = self.paint(
                        part, unknown, seed=seed, observed=observed, callback=counter
                    )
                    missing[rows, columns] = False
                    turn += 1
                    advance(1)
        assert canvas is not None
        return canvas

    def _start(
        self, coarse: UInt8[Tensor, "n 3 _ _"] | None, known: UInt8[Tensor, "3 h w"], mask: Bool[np.ndarray, "h w"]
    ) -> UInt8[Tensor, "n 3 h w"]:
        """The known pixels, and in the hole the enlarged samples of the coarser scale, fitted to the border."""
        if coarse is None:
            return known.expand(len(self.labels), -1, -1, -1).clone()
        larger = enlarge(coarse, (mask.shape[0], mask.shape[1]))
        return torch.stack([blend_seam(known, x, mask, reach=self.model.tokenizer.downscale) for x in larger])

    def paint(
        self,
        pixels: UInt8[Tensor, "n 3 h w"],
        missing: Bool[np.ndarray, "h w"],
        *,
        seed: int,
        observed: bool,
        callback: Callback | None = None,
    ) -> UInt8[Tensor, "n 3 h w"]:
        """One window: encode what is known, sample the rest, and blend the seam.

        Args:
            pixels: known outside the hole; inside it the enlarged coarse result if ``observed``, else ignored.
            missing: True inside the hole.
            observed: whether the pixels in the hole are an observation for the sampler.
        """
        model, cell = self.model, self.model.tokenizer.downscale
        unknown = token_mask(missing, cell, dilate=self.dilate)
        seen = pixels if observed else fill_unknown(pixels, missing)
        same = bool((seen == seen[:1]).all())
        tokens, observation = self._encode(seen[:1] if same else seen, observed)
        if observation is not None:
            observation = observation.expand(len(pixels), -1, -1)
        grids = model.sample_tokens(
            [model.null_label] * len(self.labels) if observed else self.labels,
            seed=seed,
            settings=replace(self.settings, guidance=1.0) if observed else self.settings,
            known=torch.stack([known_tokens(row, unknown) for row in tokens]),
            grid=(unknown.shape[0], unknown.shape[1]),
            batch=model.paint_batch,
            observation=observation,
            callback=callback,
        )
        sampled = model.decode(grids, batch=model.paint_batch)
        return torch.stack([blend_seam(p, d, missing, reach=cell) for p, d in zip(pixels, sampled, strict=True)])

    def _encode(
        self, pixels: UInt8[Tensor, "n 3 h w"], observed: bool
    ) -> tuple[Int[Tensor, "n rows columns"], Float[Tensor, "n l v"] | None]:
        """Tokens, and the log-likelihood of every code, image by image so that none depends on the others."""
        model = self.model
        if not observed:
            return model.encode(pixels), None
        found = [model.tokenizer.code_distances(to_model(x)[None].to(model.device)).cpu() for x in pixels]
        distances = torch.cat(found)  # (n, rows, columns, v)
        return distances.argmin(-1), latent_log_likelihood(distances.flatten(1, 2), self.tau)


def warn_of_detail(plan: InpaintingPlan, name: str, size: tuple[int, int]) -> str:
    """What to expect of a hole that is larger than what the model was trained for; "" for any other."""
    if len(plan.scales) == 1 and plan.factor <= ONE_SCALE:
        return ""
    height, width = size
    hole = "the whole image" if math.isinf(plan.width) else f"up to {plan.width:.0f} pixels wide"
    if len(plan.scales) == 1:
        how = "every window is filled without a view of the whole; --scales auto fills it from coarse to fine"
    else:
        steps = f"{len(plan.scales) - 1} step{'s' if len(plan.scales) > 2 else ''}"
        how = f"it is filled at 1/{plan.factor:.3g} of the resolution and refined in {steps}"
    serving = 2 ** math.ceil(math.log2(max(height, width) * plan.factor))
    example = next((f", such as config {config}," for side, config in SERVING.items() if side >= serving), "")
    return (
        f"the hole is {hole} and {name} was trained on images of {width} x {height}: {how}; expect few "
        f"details: a model of at least {serving} x {serving}{example} would see it at full resolution"
    )
