"""A trained network with its tokenizer on a device: tokens in and out. `ggm_image.pipelines.image` adds the images.

An image depends on (seed, its index, its class, the settings) alone: every image has a random generator of its own, and
the network always sees batches of one fixed size, padded, because kernels are not batch-invariant.
"""

import numbers
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.image.inputs import ImageLike, pixel_batch
from ggm_image.image.preprocess import to_model, to_uint8
from ggm_image.io.resources import resource_dir
from ggm_image.network import Transformer
from ggm_image.pipelines.base import pad_batch, rows_per_call
from ggm_image.pipelines.classes import class_label
from ggm_image.pipelines.model_folder import NetworkFolder
from ggm_image.pipelines.model_weights import load_network
from ggm_image.pipelines.network_calls import NetworkCalls
from ggm_image.pipelines.save import save_model
from ggm_image.pipelines.token_grids import sample_grids, signal_of_grids
from ggm_image.runtime.compile import cannot_compile
from ggm_image.runtime.cuda_graph import check_cuda_graphs
from ggm_image.runtime.devices import choose_device
from ggm_image.runtime.numerics import isolate
from ggm_image.runtime.precision import native_bf16
from ggm_image.sampler import Callback, Denoiser
from ggm_image.sampler.settings import Settings, check_count, check_seed
from ggm_image.tokenizers.base import Tokenizer
from ggm_image.tokenizers.convert import convert_tokenizer
from ggm_image.tokenizers.registry import find_tokenizer

M = TypeVar("M", bound="TokenModel")
MAX_IMAGES = 100_000_000
Classes = str | int | Sequence[str | int] | np.ndarray | Tensor | None
INPAINT_BATCH = {"cpu": 4, "cuda": 16}
"""Rows of one network call for the few samples of `Model.inpaint`; padded where there are fewer."""


class TokenModel:
    """A network and its tokenizer: device and precision, class labels, tokens. `Model` adds what works on images.

    Attributes:
        name: of the folder.
        modality: "image".
        class_names: (C,) names, in the order of the labels; empty for a model without classes.
        presets: settings by name; ``exact`` is the paper's chain without truncation.
        sha256: of the network's weights file.
        compiled: whether torch.compile made the network's code, which rounds in its own way.
        folder: what its ``config.yaml`` says.
        tokenizer_source: name or folder from which the tokenizer was loaded.
        device: of the network and the tokenizer.
        half: whether the network computes in bfloat16.
        kernel_batch: rows of one network call; fewer are padded.
        paint_batch: the same for inpainting, which usually samples few images.
    """

    modality = "image"

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
    def to(self: M, device: str | torch.device) -> M:
        """Move the model to a device, in place; not while another thread uses it.

        Weights that were rounded to bfloat16 for one device are read again for a device that computes in float32.

        Args:
            device: see `ggm_image.runtime.devices.choose_device`.

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
        """Write the model and its tokenizer to a new folder that `load_model` reads. It can be moved.

        Args:
            folder: it must not exist, or be empty.

        Raises:
            UserError: the folder holds files, or the model's own files are gone or have changed.
        """
        return save_model(self.folder, folder, add_tokenizer=self._add_tokenizer, sha256=self.sha256)

    def _add_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer as safetensors, unless it is one of ``ggm-image tokenizers``, found by its name."""
        spec = find_tokenizer(self.tokenizer_source)
        if spec.folder.resolve().parent == resource_dir("tokenizers").resolve():
            return
        written = convert_tokenizer(spec, folder, name=self.folder.tokenizer_name)
        identity = written.identity or written.sha256
        if identity != self.folder.tokenizer_sha256:
            got = f"{spec.folder} is {identity[:16]}..., not {self.folder.tokenizer_sha256[:16]}..."
            raise UserError("this is not the model's tokenizer", got, "name the one that it was trained with")

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
        if isinstance(name_or_index, np.ndarray | Tensor) and name_or_index.ndim == 0:
            name_or_index = name_or_index.item()
        if isinstance(name_or_index, numbers.Integral) and not isinstance(name_or_index, bool):
            name_or_index = int(name_or_index)
        return class_label(self.class_names, name_or_index)

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

    def _changed(self, preset: str, settings: Settings | None, changes: dict[str, Any]) -> Settings:
        """The preset, or other settings instead of it, with changes."""
        if settings is None:
            return self.settings(preset, **changes)
        return Settings.of(asdict(settings) | {k: v for k, v in changes.items() if v is not None})

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
        """Sample token grids ``first .. first + n - 1`` of a seed.

        Args:
            labels: (n,) the class of each, see `labels`; ``null_label`` for no class.
            seed: any integer.
            settings: how; the preset "best" by default.
            first: index of the first image.
            known: (L,) or (n, L) the token where known, -1 where to be sampled. Rows that differ in where tokens are
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
        seed = check_seed(seed)
        labels = [check_count(label, "a label", most=self.null_label) for label in labels]
        return sample_grids(
            self,
            labels,
            seed=seed,
            settings=settings or self.settings(),
            first=first,
            known=known,
            grid=grid or self.grid,
            callback=callback,
            on_batch=on_batch,
            batch=batch or self.kernel_batch,
            observation=observation,
        )

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
        if labels is None:
            labels = torch.full((len(tokens),), self.null_label)
        return signal_of_grids(self, tokens, labels, level=level, block=block, batch=batch or self.kernel_batch)

    def denoiser(self, height: int, width: int) -> Denoiser:
        """The network as the samplers call it, for token grids of one size."""

        def denoiser(tokens: Tensor, levels: Tensor, sites: Tensor, labels: Tensor | None) -> Tensor:
            return self._calls(self.network, tokens, levels, sites, labels, (height, width))

        return denoiser

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
