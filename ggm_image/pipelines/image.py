"""A trained model and its tokenizer: sample images, inpaint, judge images.

    model = load_model("cifar10")
    images = model.sample(16, classes="cat", seed=0)          # uint8 (16, 3, 32, 32)
    larger = model.sample(4, guide="small.png")                # four images that look like it when reduced
    samples = model.inpaint(image, mask, n=4)                   # four PIL images

An image depends on (seed, its index, its class, the settings) alone, see `ggm_image.pipelines.token_model`.

Threads may share a model: no call changes it, except `Model.to` and `Model.compile`.
"""

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any, Literal, overload

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

import ggm_image
from ggm_image.errors import UserError
from ggm_image.image.blending import composite
from ggm_image.image.extension import Extension
from ggm_image.image.inputs import ImageLike, open_rgb
from ggm_image.image.io import to_pil
from ggm_image.image.mask_conventions import MaskLike
from ggm_image.image.masks import load_mask
from ggm_image.image.scales import InpaintingPlan, Scales, check_scales, plan_inpainting
from ggm_image.image.visualize import image_grid
from ggm_image.pipelines.call_counter import CallCounter, OnProgress
from ggm_image.pipelines.guide import STRENGTH, Guide, encode_guide
from ggm_image.pipelines.inpaint import TAU, Inpainter, warn_of_detail
from ggm_image.pipelines.signal import signal_map
from ggm_image.pipelines.token_model import INPAINT_BATCH, MAX_IMAGES, Classes, TokenModel
from ggm_image.runtime.numerics import isolate
from ggm_image.runtime.streams import say
from ggm_image.sampler.observation import check_tau
from ggm_image.sampler.settings import Settings, check_count, check_seed

__all__ = ["INPAINT_BATCH", "MAX_IMAGES", "OUTPUTS", "Classes", "Model", "Pixels"]

OUTPUTS = ("pt", "pil", "np", "grid")
Pixels = np.ndarray[tuple[int, int, int, int], np.dtype[np.uint8]]
"""(n, h, w, 3)."""


class Model(TokenModel):
    """A trained network with its tokenizer. Make one with `load_model`.

    What concerns devices, classes and tokens is inherited: see `TokenModel`, for its attributes too.
    """

    @overload
    def sample(
        self,
        n: int = ...,
        *,
        classes: Classes = ...,
        seed: int = ...,
        preset: str = ...,
        settings: Settings | None = ...,
        first: int = ...,
        output: Literal["pt"] = ...,
        guide: ImageLike | Guide | None = ...,
        strength: float = ...,
        on_progress: OnProgress | None = ...,
        **changes: Any,
    ) -> UInt8[Tensor, "n 3 h w"]: ...

    @overload
    def sample(self, n: int = ..., *, output: Literal["pil"], **options: Any) -> list[Image.Image]: ...

    @overload
    def sample(self, n: int = ..., *, output: Literal["np"], **options: Any) -> Pixels: ...

    @overload
    def sample(self, n: int = ..., *, output: Literal["grid"], **options: Any) -> Image.Image: ...

    @isolate
    def sample(
        self,
        n: int = 1,
        *,
        classes: Classes = None,
        seed: int = 0,
        preset: str = "best",
        settings: Settings | None = None,
        first: int = 0,
        output: str = "pt",
        guide: ImageLike | Guide | None = None,
        strength: float = STRENGTH,
        on_progress: OnProgress | None = None,
        **changes: Any,
    ) -> Any:
        """Sample images.

        Args:
            n: how many; 0 gives an empty result.
            classes: a class name or index for all, one for each, or None for class k mod C; with a guide, None is no
                class.
            seed: any integer; image k of a seed is the same for any n.
            preset: ``fast``, ``best`` or ``exact``; ``settings`` instead for any other.
            settings: see `Settings`.
            first: index of the first image.
            output: ``pt``, ``pil``, ``np`` or ``grid``, see below.
            guide: an image of any size that the samples follow: a small one to enlarge, one to vary, or colour hints on
                a transparent background. See `ggm_image.image.guide.load_guide`.
            strength: how closely they follow it, > 0; larger is closer. See `encode_guide`.
            on_progress: called as on_progress(network calls done, network calls in total); what it raises cancels.
            **changes: entries of `Settings` to change, for example ``guidance=3``.

        Returns:
            Pixels in [0, 255], on the CPU: a uint8 tensor (n, 3, h, w) for ``pt``, an array (n, h, w, 3) for ``np``,
            a list of Pillow images for ``pil``, and for ``grid`` one Pillow image with all of them, which a notebook
            shows.

        Raises:
            UserError: for an unknown class, preset, setting or output, or a value out of range.
        """
        if output not in OUTPUTS:
            raise UserError("no such output", f"got {output!r}", f"choose one of {', '.join(OUTPUTS)}")
        settings = self._changed(preset, settings, changes)
        least = 1 if output == "grid" else 0
        n, first = check_count(n, least=least, most=MAX_IMAGES), check_count(first, "first")
        observation = None
        if guide is None:
            labels = self._labels(n, classes, first)
        else:
            labels, settings = self._optional_class(n, classes, settings, changes)
            observation = self.encode_guide(guide, strength).observation.expand(n, -1, -1)
        counter = None
        if on_progress is not None:
            batches = -(-len(labels) // self.kernel_batch)
            counter = CallCounter(on_progress, batches * settings.calls(self.grid[0] * self.grid[1]))
        tokens = self.sample_tokens(
            labels, seed=seed, settings=settings, first=first, callback=counter, observation=observation
        )
        return _as_output(self.decode(tokens), output)

    @isolate
    def encode_guide(self, guide: ImageLike | Guide, strength: float = STRENGTH) -> Guide:
        """A guide image as `sample` uses it; encode it once to use it in several calls.

        Args:
            guide: an image of any size; transparent parts guide nothing. An encoded guide is returned as it is.
            strength: > 0. Codes a of a site with latent z lose strength |z - e_a|^2 / d nats, with d the median
                squared distance of the guide's latents to their nearest codes.

        Raises:
            UserError: the guide cannot be opened or is transparent everywhere, or the strength is not positive.
        """
        return guide if isinstance(guide, Guide) else encode_guide(self, guide, strength)

    def _optional_class(
        self, n: int, classes: Classes, settings: Settings, changes: dict[str, Any]
    ) -> tuple[list[int], Settings]:
        """Labels where an image may have no class, and settings: without a class there is nothing to be guided to."""
        if classes is not None:
            return self._labels(n, classes), settings
        if changes.get("guidance") is not None:
            say("guidance has no effect without a class")
        return [self.null_label] * n, replace(settings, guidance=1.0)

    @overload
    def stream(self, n: int, *, output: Literal["pt"] = ..., **options: Any) -> Iterator[UInt8[Tensor, "n 3 h w"]]: ...

    @overload
    def stream(self, n: int, *, output: Literal["pil"], **options: Any) -> Iterator[list[Image.Image]]: ...

    @overload
    def stream(self, n: int, *, output: Literal["np"], **options: Any) -> Iterator[Pixels]: ...

    @overload
    def stream(self, n: int, *, output: Literal["grid"], **options: Any) -> Iterator[Image.Image]: ...

    def stream(
        self,
        n: int,
        *,
        classes: Classes = None,
        seed: int = 0,
        preset: str = "best",
        settings: Settings | None = None,
        first: int = 0,
        output: str = "pt",
        batch: int | None = None,
        guide: ImageLike | Guide | None = None,
        strength: float = STRENGTH,
        **changes: Any,
    ) -> Iterator[Any]:
        """Sample images in batches as they are finished, to keep memory flat: ``for images in model.stream(10_000)``.

        Args:
            n, classes, seed, preset, settings, first, output, guide, strength, changes: as in `sample`, whose images
                these are.
            batch: images in one batch, ``kernel_batch`` by default.

        Yields:
            What `sample` returns for ``batch`` images, in order; the last batch may be smaller.

        Raises:
            UserError: as `sample`, before the first batch.
        """
        if output not in OUTPUTS:
            raise UserError("no such output", f"got {output!r}", f"choose one of {', '.join(OUTPUTS)}")
        settings, seed = self._changed(preset, settings, changes), check_seed(seed)
        n, first = check_count(n, most=MAX_IMAGES), check_count(first, "first")
        if guide is None:
            labels = self._labels(n, classes, first)
        else:
            labels, settings = self._optional_class(n, classes, settings, changes)
            guide = self.encode_guide(guide, strength)
        unlabelled = not self.class_names or (guide is not None and classes is None)
        size = self.kernel_batch if batch is None else check_count(batch, "the batch", least=1)
        parts = (range(k, min(k + size, len(labels))) for k in range(0, len(labels), size))
        sample: Any = self.sample  # its overloads want a literal output
        return (
            sample(
                len(part),
                classes=None if unlabelled else [labels[k] for k in part],
                seed=seed,
                settings=settings,
                first=first + part.start,
                output=output,
                guide=guide,
            )
            for part in parts
        )

    @isolate
    def inpaint(
        self,
        image: ImageLike,
        mask: MaskLike | None = None,
        *,
        n: int = 1,
        classes: Classes = None,
        seed: int = 0,
        preset: str = "best",
        settings: Settings | None = None,
        dilate: int = 0,
        feather: int = 0,
        extend: Extension | None = None,
        context: int | None = None,
        fit: bool = False,
        mask_index: int | None = None,
        scales: Scales = "auto",
        tau: float = TAU,
        on_progress: OnProgress | None = None,
        **changes: Any,
    ) -> list[Image.Image]:
        """Inpaint the white part of the mask; all other pixels of the result are the input's, bit for bit.

        The model sees nothing of what lies under the mask: those pixels are replaced before encoding. A token
        is sampled if any pixel of its cell is unknown; known tokens have level 1 and are never queried.

        Args:
            image: a path, bytes, Pillow image, array or tensor, see `ggm_image.image.inputs.open_single_image`; of any
                size from one cell on. It is painted in windows of the model's size, see `ggm_image.image.windows`.
            mask: white (>= 128) where to paint, or by another convention of `ggm_image.image.mask_conventions`; None
                for the transparent parts of ``image``.
            n: how many samples; 0 gives an empty list.
            classes: what the image shows, or what each sample is to show; no class by default.
            seed: any integer; sample k of a seed is the same for any n.
            preset, settings: as in `sample`.
            dilate: pixels by which the resampled tokens reach beyond the mask.
            feather: width in pixels of the blend, inside the mask.
            extend: pixels to add around the image.
            context: known pixels to show the model on each side of the hole; a quarter of its size by default.
            fit: stretch a mask of another size.
            mask_index: paint where the mask's palette index or grey value is this.
            scales: at most how many resolutions a hole that is wide for the model is filled at, from coarse to fine,
                see `ggm_image.image.scales`; "auto" for as many as needed, 1 for the image's own alone.
            tau: how far a finer scale may depart from the coarser one, > 0, see `ggm_image.sampler.observation`.
            on_progress: as in `sample`.
            **changes: entries of `Settings` to change, for example ``guidance=3``.

        Returns:
            n images of the size and mode of ``image`` (larger where extended), in their ``info`` what they keep of its
            metadata, see `ggm_image.image.metadata.kept_metadata`. With a mask that is black everywhere
            they are the image itself.

        Raises:
            UserError: for an image or mask that does not open, or sizes that do not fit.
        """
        settings, seed = self._changed(preset, settings, changes), check_seed(seed)
        check_scales(scales)
        check_tau(tau)
        original, hole = load_mask(image, mask, extend_by=extend, fit=fit, mask_index=mask_index)
        n = check_count(n, "the number of samples", most=MAX_IMAGES)
        labels, settings = self._optional_class(n, classes, settings, changes)
        if n == 0:
            return []
        if not hole.any():
            return [composite(original, original.convert("RGB"), hole) for _ in range(n)]
        plan = self.plan_inpainting(hole, context=context, scales=scales)
        if warning := warn_of_detail(plan, self.name, self.image_size):
            say(warning)
        inpainter = Inpainter(self, labels, seed, settings, dilate, tau, on_progress)
        return inpainter.images(original, hole, plan, feather=feather)

    def plan_inpainting(
        self, mask: Bool[np.ndarray, "h w"], *, context: int | None = None, scales: Scales = "auto"
    ) -> InpaintingPlan:
        """What `inpaint` does for a mask with at least one True: its crop, its scales and their windows."""
        return plan_inpainting(mask, self.image_size, self.tokenizer.downscale, context=context, scales=scales)

    @isolate
    def signal(
        self,
        image: ImageLike,
        *,
        level: float = 0.9,
        block: int = 4,
        classes: str | int | None = None,
        on_progress: OnProgress | None = None,
    ) -> Float[Tensor, "rows columns"]:
        """The model's probability, token by token, that an image's token is signal and not noise.

        Args:
            image: as in `inpaint`. What does not fill a cell at its right and
                lower edge is left out; an image larger than the model's is judged in windows of the model's size,
                and the mean is taken where they overlap.
            level: share in (0, 1) of the tokens that are expected to be signal.
            block: sites judged in one network call.
            classes: what the image shows; no class by default.
            on_progress: called as on_progress(windows done, windows in total); what it raises cancels.

        Returns:
            (rows, columns) probabilities on the CPU; `ggm_image.image.visualize.heat_map` shows them.

        Raises:
            UserError: for an image that does not open or is smaller than a cell, an unknown class, or a level out of
                range.
        """
        label = self.null_label if classes is None else self.label(classes)
        return signal_map(self, open_rgb(image), label, level=level, block=block, on_progress=on_progress)

    def manifest(
        self, n: int, *, classes: Classes, seed: int, settings: Settings, guide: Guide | None = None
    ) -> dict[str, Any]:
        """Everything that is needed to sample the same images again."""
        labels = [] if guide is not None and classes is None else self.labels(n, classes)
        return {
            "model": self.name,
            **({"revision": self.folder.revision} if self.folder.revision else {}),
            "tokenizer": self.tokenizer.name,
            **self.identity,
            "seed": check_seed(seed),
            "count": int(n),
            "classes": [self.class_names[label] for label in labels] if labels and self.class_names else None,
            **({} if guide is None else guide.described),
            "settings": asdict(settings),
            "device": self.device.type,
            "versions": {"ggm_image": ggm_image.__version__, "torch": torch.__version__},
        }


def _as_output(pixels: UInt8[Tensor, "n 3 h w"], output: str) -> Any:
    """Pixels as one of `OUTPUTS`."""
    if output == "pil":
        return [to_pil(image) for image in pixels]
    if output == "grid":
        return to_pil(image_grid(pixels))
    return pixels.permute(0, 2, 3, 1).contiguous().numpy() if output == "np" else pixels
