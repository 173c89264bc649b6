"""A trained model and its tokenizer: draw images, fill holes.

    model = load_model("cifar10")
    images = model.sample(16, classes="cat", seed=0)          # uint8 (16, 3, 32, 32)
    answers = model.inpaint(image, mask, n=4)                   # four PIL images

An image depends on (seed, its index, its class, the settings) alone: every image has a random generator
of its own, and the network always sees batches of one fixed size, padded, because kernels are not batch-invariant.

Threads may share a model: no call changes it, except `Model.to` and `Model.compile`.
"""

import difflib
import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor

import ggm_image
from ggm_image.errors import UserError
from ggm_image.image.blending import composite
from ggm_image.image.extension import Extension
from ggm_image.image.inputs import ImageLike, open_rgb, pixel_batch
from ggm_image.image.io import rgb_pixels, to_pil
from ggm_image.image.mask_conventions import MaskLike
from ggm_image.image.masks import load_mask
from ggm_image.image.preprocess import to_model, to_uint8
from ggm_image.image.scales import ONE_SCALE, InpaintingPlan, Scales, check_scales, plan_inpainting
from ggm_image.image.visualize import image_grid
from ggm_image.image.windows import plan_windows, window_side
from ggm_image.network import Transformer
from ggm_image.pipelines.base import autocast, image_generator, pad_batch, rows_per_call, sample_batch, without_padding
from ggm_image.pipelines.call_counter import CallCounter, OnProgress
from ggm_image.pipelines.inpaint import TAU, Inpainter
from ggm_image.pipelines.model_folder import NetworkFolder
from ggm_image.pipelines.model_weights import load_network
from ggm_image.pipelines.network_calls import NetworkCalls
from ggm_image.pipelines.save import save_model
from ggm_image.runtime.compile import cannot_compile
from ggm_image.runtime.cuda_graph import check_cuda_graphs
from ggm_image.runtime.devices import choose_device
from ggm_image.runtime.numerics import isolate
from ggm_image.runtime.precision import native_bf16
from ggm_image.runtime.progress import progress
from ggm_image.runtime.streams import say
from ggm_image.sampler import Callback
from ggm_image.sampler.observation import check_tau
from ggm_image.sampler.settings import Settings, check_count, check_seed
from ggm_image.sampler.token_signal import signal_probability
from ggm_image.tokenizers.base import Tokenizer

MAX_IMAGES = 100_000_000
OUTPUTS = ("pt", "pil", "np", "grid")
Pixels = np.ndarray[tuple[int, int, int, int], np.dtype[np.uint8]]
"""(n, h, w, 3)."""
Classes = str | int | Sequence[str | int] | np.ndarray | Tensor | None
INPAINT_BATCH = {"cpu": 4, "cuda": 16}
"""Rows of one network call for the few samples of `Model.inpaint`; padded where there are fewer."""


class Model:
    """A trained network with its tokenizer. Make one with `load_model`.

    Attributes:
        name: of the folder.
        class_names: (C,) names, in the order of the labels; empty for a model without classes.
        presets: settings by name; ``exact`` is the paper's chain without truncation.
        sha256: of the network's weights file.
        compiled: whether torch.compile made the network's code, which rounds in its own way.
        folder: what its ``config.yaml`` says.
        tokenizer_source: name or folder from which the tokenizer was loaded.
    """

    def __init__(
        self,
        folder: NetworkFolder,
        network: Transformer,
        sha256: str,
        tokenizer: Tokenizer,
        device: str | torch.device,
        *,
        tokenizer_source: str | Path | None = None,
        cuda_graphs: bool | None = None,
    ) -> None:
        self.folder, self.name, self.sha256 = folder, folder.name, sha256
        self.class_names: list[str] = list(folder.class_names)
        self.presets = {name: Settings.of(dict(entries)) for name, entries in folder.presets.items()}
        self.tokenizer, self.network = tokenizer, network
        self.grid = (folder.network.grid[0], folder.network.grid[1])
        self.compiled = False
        self.tokenizer_source = tokenizer_source or folder.tokenizer
        self._cuda_graphs, self._calls = cuda_graphs, NetworkCalls(cuda_graphs)
        self._place(torch.device(device))

    def _place(self, device: torch.device) -> None:
        self._calls.clear()  # its graphs hold memory of the device and addresses of the weights
        self.device = device
        self.half = native_bf16(device)
        self.tokenizer = self.tokenizer.to(device)
        self.network = self.network.to(device, torch.bfloat16 if self.half else torch.float32).eval()
        self.kernel_batch = rows_per_call(device, self.grid[0] * self.grid[1])
        self.paint_batch = INPAINT_BATCH.get(device.type, 4)

    def __repr__(self) -> str:
        height, width = self.image_size
        parts = [
            repr(self.name),
            f"{width} x {height} pixels",
            f"{self.grid[1]} x {self.grid[0]} tokens of {self.tokenizer.codebook_size:,} codes ({self.tokenizer.name})",
            f"{len(self.class_names)} classes" if self.class_names else "no classes",
            f"{sum(p.numel() for p in self.network.parameters()) / 1e6:.1f} million parameters",
            f"{self.device}, {'bf16' if self.half else 'fp32'}",
        ]
        return f"Model({', '.join(parts)})"

    @isolate
    def to(self, device: str | torch.device) -> "Model":
        """Move the model to a device, in place; not while another thread uses it.

        Weights that were rounded to bfloat16 for one device are read again for a device that computes in float32.

        Args:
            device: see `ggm_image.runtime.devices.choose_device`.

        Returns:
            The same model.

        Raises:
            UserError: there is no such device, or the weights are needed again and have changed on disk.
        """
        chosen = choose_device(device)
        check_cuda_graphs(self._cuda_graphs, chosen)
        if self.compiled and (why := cannot_compile(chosen.type)):
            raise UserError("a compiled model cannot run there", why, "load it again without compiling")
        if self.half and not native_bf16(chosen):
            network, sha256 = load_network(self.folder)
            if sha256 != self.sha256:
                raise UserError("the weights changed on disk", self.folder.weights, "load the model again")
            self.network.load_state_dict(network.state_dict(), assign=True)
        self._place(chosen)
        return self

    def save(self, folder: str | Path) -> Path:
        """Write the model and its tokenizer to a new folder, which `load_model` reads wherever it is moved.

        Args:
            folder: it must not exist, or be empty.

        Returns:
            Its path.

        Raises:
            UserError: the folder holds files, or the model's own files are gone or have changed.
        """
        return save_model(self.folder, folder, tokenizer=self.tokenizer_source, sha256=self.sha256)

    def compile(self) -> None:
        """Compile the network: half a minute before the first image of a shape, then faster.

        Raises:
            UserError: torch finds no compiler here.
        """
        if why := cannot_compile(self.device.type):
            raise UserError("the network cannot be compiled here", why, "install a C++ compiler, or do not compile")
        self.network.compile_blocks()
        self.compiled = True

    @property
    def identity(self) -> dict[str, Any]:
        """Everything of the model that an image depends on, for protocols and manifests."""
        return {
            "model_sha256": self.sha256,
            **self.tokenizer.identity,
            "kernel_batch": self.kernel_batch,
            "precision": "bf16" if self.half else "fp32",
            **({"compiled": True} if self.compiled else {}),
        }

    @property
    def null_label(self) -> int:
        """The label that stands for no class."""
        return len(self.class_names)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of a sampled image."""
        return self.grid[0] * self.tokenizer.downscale, self.grid[1] * self.tokenizer.downscale

    def label(self, name_or_index: object) -> int:
        """The label of a class name (in any case, unless that is another's name) or index.

        Of names that are numbers themselves, text is a name before it is an index; an int is always an index.

        Raises:
            UserError: if there is none; names the nearest ones.
        """
        names = [name.lower() for name in self.class_names]
        if isinstance(name_or_index, np.ndarray | Tensor) and name_or_index.ndim == 0:
            name_or_index = name_or_index.item()
        if isinstance(name_or_index, numbers.Integral) and not isinstance(name_or_index, bool):
            name_or_index = int(name_or_index)
        text = str(name_or_index).strip().lower()
        if isinstance(name_or_index, str):
            if name_or_index in self.class_names:
                return self.class_names.index(name_or_index)
            if text in names:
                return names.index(text)
        if text.isdecimal() and len(text) < 10 and int(text) < len(names):
            return int(text)
        if not names:
            raise UserError("the model has no classes", f"got {name_or_index!r}", "leave out the class")
        near = difflib.get_close_matches(text, names, n=3, cutoff=0.4)
        fix = f"did you mean {' or '.join(near)}?" if near else f"choose one of {', '.join(self.class_names)}"
        raise UserError("no such class", f"got {name_or_index!r}", fix)

    def labels(self, n: int, classes: Classes, first: int = 0) -> list[int]:
        """One label an image: the class given, or class k mod C for image k where none is.

        Args:
            n: how many, at least 1.
            classes: a name or index, or a list, array or tensor of n of them.
            first: index of the first image.

        Raises:
            UserError: for an unknown class, or another number of classes than images.
        """
        return self._labels(check_count(n, least=1, most=MAX_IMAGES), classes, first)

    def _labels(self, n: int, classes: Classes, first: int = 0) -> list[int]:
        if classes is None:
            return [(first + k) % max(1, len(self.class_names)) for k in range(n)]
        if isinstance(classes, np.ndarray | Tensor):
            classes = classes.tolist()
        if isinstance(classes, str | numbers.Integral):
            return [self.label(classes)] * n
        if not isinstance(classes, Iterable):
            raise UserError("a class is a name or an index", f"got {classes!r}", "give one, or one an image")
        chosen = [self.label(c) for c in classes]
        if len(chosen) != n:
            raise UserError("classes must be one, or one an image", f"got {len(chosen)} for {n}", "give one class")
        return chosen

    def settings(self, preset: str = "best", **changes: Any) -> Settings:
        """A preset with changes; None leaves the preset's value.

        Raises:
            UserError: for an unknown preset or a value out of range.
        """
        return Settings.of_preset(self.presets, preset, changes)

    @isolate
    def sample_tokens(
        self,
        labels: Sequence[int],
        *,
        seed: int = 0,
        settings: Settings | None = None,
        first: int = 0,
        known: Int[Tensor, "*n l"] | np.ndarray | Sequence[Any] | None = None,
        grid: tuple[int, int] | None = None,
        callback: Callback | None = None,
        on_batch: Callable[[Int[Tensor, "m h w"]], None] | None = None,
        batch: int | None = None,
        observation: Float[Tensor, "n l v"] | None = None,
    ) -> Int[Tensor, "n h w"]:
        """Draw token grids ``first .. first + n - 1`` of a seed.

        Args:
            labels: (n,) the class of each, see `labels`; ``null_label`` for no class.
            seed: any integer.
            settings: how; the preset "best" by default.
            first: index of the first image.
            known: (L,) or (n, L) the token where known, -1 where to be drawn. Rows that differ in where tokens are
                known share no network call, so that each row is what it is alone.
            grid: rows and columns; the training grid by default.
            callback: called as callback(t, tokens (m, L)) at every step of every batch; all rows must then have the
                same sites known.
            on_batch: called with the finished grids of every batch.
            batch: rows of one network call, ``kernel_batch`` by default; the same tokens only for the same rows.
            observation: (n, L, V) log-likelihood of every code at every site, see `ggm_image.sampler.observation`.

        Returns:
            (n, H, W) int64 on the CPU.

        Raises:
            UserError: for labels, a seed or known tokens that do not fit.
        """
        settings, seed = settings or self.settings(), check_seed(seed)
        height, width = grid or self.grid
        labels = [check_count(label, "a label", most=self.null_label) for label in labels]
        n, size = len(labels), batch or self.kernel_batch
        result = torch.empty(n, height, width, dtype=torch.int64)
        groups = [torch.arange(n)]
        if known is not None:
            known = _known_rows(known, n, height * width)
            groups = _same_pattern(known < 0)
        if len(groups) > 1 and callback is not None:
            got = f"{len(groups)} patterns"
            raise UserError("a callback needs the same known sites in every image", got, "sample them one by one")
        for rows in (part for group in groups for part in group.split(size)):
            if not len(rows):
                continue
            padding = [self.null_label] * (size - len(rows))
            generators = [image_generator(seed, first + k) for k in rows.tolist()]
            tokens = self._sample_batch(
                settings,
                height,
                width,
                torch.tensor([*(labels[k] for k in rows.tolist()), *padding]),
                [*generators, *(image_generator(seed, first + n + k) for k in range(len(padding)))],
                None if known is None else pad_batch(known[rows], size),
                callback and without_padding(callback, len(rows)),
                None if observation is None else pad_batch(observation[rows], size).to(self.device),
            )
            result[rows] = tokens[: len(rows)].view(-1, height, width).cpu()
            if on_batch is not None:
                on_batch(result[rows])
        return result

    def _sample_batch(
        self,
        settings: Settings,
        height: int,
        width: int,
        labels: Int[Tensor, " b"],
        generators: list[torch.Generator],
        known: Int[Tensor, "b l"] | None,
        callback: Callback | None,
        observation: Float[Tensor, "b l v"] | None = None,
    ) -> Int[Tensor, "b l"]:
        return sample_batch(
            self._denoiser(height, width),
            settings,
            generators,
            device=self.device,
            half=self.half,
            null_label=self.null_label,
            height=height,
            width=width,
            codebook_size=self.tokenizer.codebook_size,
            labels=labels,
            known=known,
            callback=callback,
            observation=observation,
        )

    def _denoiser(self, height: int, width: int) -> Callable[..., Tensor]:
        def denoiser(tokens: Tensor, levels: Tensor, sites: Tensor, labels: Tensor | None) -> Tensor:
            return self._calls(self.network, tokens, levels, sites, labels, (height, width))

        return denoiser

    @isolate
    def decode(self, tokens: Int[Tensor, "n gh gw"], *, batch: int | None = None) -> UInt8[Tensor, "n 3 h w"]:
        """Images of token grids, in float32 and in batches of one fixed size, ``kernel_batch`` by default."""
        size, cell = batch or self.kernel_batch, self.tokenizer.downscale
        images = torch.empty(len(tokens), 3, tokens.shape[1] * cell, tokens.shape[2] * cell, dtype=torch.uint8)
        for start in range(0, len(tokens), size):
            part = tokens[start : start + size]
            decoded = self.tokenizer.decode(pad_batch(part, size).to(self.device))
            images[start : start + size] = to_uint8(decoded)[: len(part)].cpu()
        return images

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
        on_progress: OnProgress | None = None,
        **changes: Any,
    ) -> Any:
        """Draw images.

        Args:
            n: how many; 0 gives an empty result.
            classes: a class name or index for all, one for each, or None for class k mod C.
            seed: any integer; image k of a seed is the same whatever n is.
            preset: ``fast``, ``best`` or ``exact``; ``settings`` instead for any other.
            settings: see `Settings`.
            first: index of the first image.
            output: ``pt``, ``pil``, ``np`` or ``grid``, see below.
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
        labels = self._labels(check_count(n, least=least, most=MAX_IMAGES), classes, check_count(first, "first"))
        counter = None
        if on_progress is not None:
            batches = -(-len(labels) // self.kernel_batch)
            counter = CallCounter(on_progress, batches * settings.calls(self.grid[0] * self.grid[1]))
        tokens = self.sample_tokens(labels, seed=seed, settings=settings, first=first, callback=counter)
        return _as_output(self.decode(tokens), output)

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
        **changes: Any,
    ) -> Iterator[Any]:
        """Sample images in batches as they are finished, to keep memory flat: ``for images in model.stream(10_000)``.

        Args:
            n, classes, seed, preset, settings, first, output, changes: as in `sample`, whose images these are.
            batch: images in one batch, ``kernel_batch`` by default.

        Yields:
            What `sample` returns for ``batch`` images, in order; the last batch may be smaller.

        Raises:
            UserError: as `sample`, before the first batch.
        """
        if output not in OUTPUTS:
            raise UserError("no such output", f"got {output!r}", f"choose one of {', '.join(OUTPUTS)}")
        settings, seed = self._changed(preset, settings, changes), check_seed(seed)
        labels = self._labels(check_count(n, most=MAX_IMAGES), classes, check_count(first, "first"))
        size = self.kernel_batch if batch is None else check_count(batch, "the batch", least=1)
        parts = (range(k, min(k + size, len(labels))) for k in range(0, len(labels), size))
        sample: Any = self.sample  # its overloads want a literal output
        return (
            sample(
                len(part),
                classes=[labels[k] for k in part] if self.class_names else None,
                seed=seed,
                settings=settings,
                first=first + part.start,
                output=output,
            )
            for part in parts
        )

    def _changed(self, preset: str, settings: Settings | None, changes: dict[str, Any]) -> Settings:
        """The preset, or other settings instead of it, with changes."""
        if settings is None:
            return self.settings(preset, **changes)
        return Settings.of(asdict(settings) | {k: v for k, v in changes.items() if v is not None})

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
        """Paint the white part of the mask anew; all other pixels of the result are the input's, bit for bit.

        The model sees nothing of what lies under the mask: those pixels are replaced before encoding. A token
        is drawn anew if any pixel of its cell is unknown; known tokens have level 1 and are never queried.

        Args:
            image: a path, bytes, Pillow image, array or tensor, see `ggm_image.image.inputs.open_single_image`; of any
                size from one cell on. It is painted in windows of the model's size, see `ggm_image.image.windows`.
            mask: white (>= 128) where to paint, or by another convention of `ggm_image.image.mask_conventions`; None
                for the transparent parts of ``image``.
            n: how many answers; 0 gives an empty list.
            classes: what the image shows, or what each answer is to show; no class by default.
            seed: any integer; answer k of a seed is the same whatever n is.
            preset, settings: as in `sample`.
            dilate: pixels by which the part drawn anew by the model reaches beyond the mask.
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
        picture, hole = load_mask(image, mask, extend_by=extend, fit=fit, mask_index=mask_index)
        n = check_count(n, "the number of answers", most=MAX_IMAGES)
        labels = self._labels(n, classes) if classes is not None else [self.null_label] * n
        if classes is None:
            if changes.get("guidance") is not None:
                say("guidance has no effect without a class")
            settings = replace(settings, guidance=1.0)
        if n == 0:
            return []
        if not hole.any():
            return [composite(picture, picture.convert("RGB"), hole) for _ in range(n)]
        plan = self.plan_inpainting(hole, context=context, scales=scales)
        if warning := self._warning(plan):
            say(warning)
        crop = plan.crop
        box = (crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)
        inpainter = Inpainter(self, labels, seed, settings, dilate, tau, on_progress)
        samples = inpainter.run(rgb_pixels(picture.crop(box)), plan)
        origin = (crop.top, crop.left)
        return [composite(picture, to_pil(new), hole, feather=feather, origin=origin) for new in samples]

    def plan_inpainting(
        self, mask: Bool[np.ndarray, "h w"], *, context: int | None = None, scales: Scales = "auto"
    ) -> InpaintingPlan:
        """What `inpaint` does for a mask with at least one True: its crop, its scales and their windows."""
        return plan_inpainting(mask, self.image_size, self.tokenizer.downscale, context=context, scales=scales)

    def _warning(self, plan: InpaintingPlan) -> str:
        """What to expect of a hole that is larger than what the model was trained for; "" for any other."""
        if len(plan.scales) == 1 and plan.factor <= ONE_SCALE:
            return ""
        height, width = self.image_size
        hole = "the whole image" if math.isinf(plan.width) else f"up to {plan.width:.0f} pixels wide"
        if len(plan.scales) == 1:
            how = "every window is filled without a view of the whole; --scales auto fills it from coarse to fine"
        else:
            steps = f"{len(plan.scales) - 1} step{'s' if len(plan.scales) > 2 else ''}"
            how = f"it is filled at 1/{plan.factor:.3g} of the resolution and refined in {steps}"
        serving = 2 ** math.ceil(math.log2(max(height, width) * plan.factor))
        return (
            f"the hole is {hole} and {self.name} was trained on images of {width} x {height}: {how}; expect few "
            f"details, a model of {serving} x {serving} would see it at full resolution"
        )

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
            (rows, columns) probabilities on the CPU; `ggm_image.image.visualize.heat_map` draws them.

        Raises:
            UserError: for an image that does not open or is smaller than a cell, an unknown class, or a level out of
                range.
        """
        pixels, cell = open_rgb(image), self.tokenizer.downscale
        label = torch.tensor([self.null_label if classes is None else self.label(classes)])
        sides = [window_side(side, side, cell) for side in pixels.shape[1:]]
        total, count = torch.zeros(2, sides[0] // cell, sides[1] // cell)
        windows = plan_windows(np.ones(sides, dtype=bool), self.image_size, cell, context=0, step=cell)
        size = min(self.kernel_batch, len(windows))
        parts = [windows[start : start + size] for start in range(0, len(windows), size)]
        for done, part in enumerate(progress(parts, total=len(parts), unit="batch", label="signal")):
            if on_progress is not None:
                on_progress(done, len(parts))
            tokens = self.encode(torch.stack([pixels[:, rows, columns] for rows, columns in (w.slices for w in part)]))
            judged = self.signal_of_tokens(tokens, label.expand(len(part)), level=level, block=block, batch=size)
            for window, probabilities in zip(part, judged, strict=True):
                inside = tuple(slice(side.start // cell, side.stop // cell) for side in window.slices)
                total[inside] += probabilities
                count[inside] += 1
        if on_progress is not None:
            on_progress(len(parts), len(parts))
        return total / count

    @isolate
    def signal_of_tokens(
        self,
        tokens: Int[Tensor, "n h w"],
        labels: Int[Tensor, " n"] | None = None,
        *,
        level: float = 0.9,
        block: int = 4,
        batch: int | None = None,
    ) -> Float[Tensor, "n h w"]:
        """As `signal`, for many token grids; ``labels`` (n,) are classes, None for no class.

        Every network call has ``batch`` rows, ``kernel_batch`` by default, padded: a row does not depend on the others.
        """
        n, height, width = tokens.shape
        if labels is None:
            labels = torch.full((n,), self.null_label)
        size, result = batch or self.kernel_batch, torch.empty(n, height, width, dtype=torch.float32)
        for start in range(0, n, size):
            rows, classes = tokens[start : start + size], labels[start : start + size]
            with torch.inference_mode(), autocast(self.device, self.half):
                found = signal_probability(
                    self._denoiser(height, width),
                    pad_batch(rows, size).flatten(1).to(self.device),
                    height=height,
                    width=width,
                    codebook_size=self.tokenizer.codebook_size,
                    level=level,
                    block=min(block, height * width),
                    labels=pad_batch(classes, size).to(self.device),
                )
            result[start : start + size] = found[: len(rows)].view(-1, height, width).cpu()
        return result

    @isolate
    def encode(
        self, pixels: UInt8[Tensor, "n 3 h w"] | ImageLike | Iterable[ImageLike]
    ) -> Int[Tensor, "n rows columns"]:
        """Tokens of images, on the CPU; one image a pass, in float32, so that they depend on that image alone.

        Args:
            pixels: uint8 (n, 3, h, w), or what `ggm_image.image.inputs.pixel_batch` takes; h and w are multiples of a
                cell.
        """
        if not isinstance(pixels, Tensor) or pixels.ndim != 4:
            pixels = pixel_batch(pixels)
        tokens = [self.tokenizer.encode(to_model(image)[None].to(self.device)).cpu() for image in pixels]
        cell = self.tokenizer.downscale
        return torch.cat([torch.empty(0, *(side // cell for side in pixels.shape[2:]), dtype=torch.int64), *tokens])

    def manifest(self, n: int, *, classes: Classes, seed: int, settings: Settings) -> dict[str, Any]:
        """Everything that is needed to draw the same images again."""
        labels = self.labels(n, classes)
        return {
            "model": self.name,
            **({"revision": self.folder.revision} if self.folder.revision else {}),
            "tokenizer": self.tokenizer.name,
            **self.identity,
            "seed": check_seed(seed),
            "count": int(n),
            "classes": [self.class_names[label] for label in labels] if self.class_names else None,
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


def _known_rows(known: Any, n: int, sites: int) -> Int[Tensor, "n l"]:
    """Known tokens of every row, on the CPU.

    Raises:
        UserError: another shape or type.
    """
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
