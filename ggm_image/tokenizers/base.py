"""Base classes of image tokenizers, which map images to grids of codes and back, and of tokenizer families."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ggm_image.errors import UserError
from ggm_image.image.inputs import ImageLike, pixel_batch
from ggm_image.runtime.numerics import isolate


class Tokenizer(nn.Module):
    """Images in [-1, 1] to an (H, W) grid of codes in [0, codebook_size), and back.

    A family implements ``encode_indices``, ``squared_distances`` and ``decode_indices``; the checks are here, once.

    Attributes:
        name: the folder's name, written into every token cache.
        sha256: what its tokens are known by: SHA-256 of the weights file, 64 hexadecimal digits ("" when never saved).
        decoder_sha256: SHA-256 of the weights file of one whose decoder was trained apart, "" for any other: its tokens
            are those of the tokenizer called ``sha256``, the images it makes of them are not.
        codebook_size: V.
        downscale: pixels along one side of a cell.
        image_size: pixels along one side of the square images that it was trained on.
        modality: what it encodes; "text" for those of `ggm_image.tokenizers.text`.
    """

    modality = "image"
    name: str
    sha256: str
    decoder_sha256: str = ""
    codebook_size: int
    downscale: int
    image_size: int

    @property
    def identity(self) -> dict[str, str]:
        """Everything that a decoded image depends on beside its tokens, for protocols and manifests."""
        own = {"decoder_sha256": self.decoder_sha256} if self.decoder_sha256 else {}
        return {"tokenizer_sha256": self.sha256, **own}

    def encode_indices(self, images: Float[Tensor, "n 3 h w"]) -> Int[Tensor, "n gh gw"]:
        raise NotImplementedError

    def decode_indices(self, tokens: Int[Tensor, "n gh gw"]) -> Float[Tensor, "n 3 h w"]:
        raise NotImplementedError

    def squared_distances(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n gh gw v"]:
        raise NotImplementedError

    def codebook_embeddings(self) -> Float[Tensor, "v e"]:
        """The codes as the decoder receives them: close vectors look similar."""
        raise NotImplementedError

    @isolate
    def encode(self, images: ImageLike | Iterable[ImageLike], *, half: bool = False) -> Int[Tensor, "n gh gw"]:
        """Indices of the nearest codes, in float32 regardless of the caller's autocast and TF32 settings.

        Args:
            images: (N, 3, h, w), floats in [-1, 1]; h and w are multiples of ``downscale``. Or an image as a path,
                bytes, Pillow image or uint8 array, or a list of such, all of one size; see
                `ggm_image.image.inputs.open_single_image`.
            half: compute products in bfloat16.

        Returns:
            (N, h / downscale, w / downscale) int64 in [0, codebook_size).

        Raises:
            UserError: for a wrong shape, a wrong type, or values that are not finite.
        """
        if not isinstance(images, Tensor):
            images = self._from_images(images)
        return self._encoded(images, self.encode_indices, half)

    @isolate
    def code_distances(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n gh gw v"]:
        """Squared distances |z - e_a|^2 of the images' latents z to every code e_a, in float32.

        Where the codes are chosen by a linear layer instead of a distance, -log p(a), which is also least at the
        code that `encode` returns.

        Args:
            images: (N, 3, h, w), floats in [-1, 1]; h and w are multiples of ``downscale``.

        Returns:
            (N, h / downscale, w / downscale, V), at least 0.

        Raises:
            UserError: as `encode`.
        """
        return self._encoded(images, self.squared_distances, False)

    def _encoded(self, images: Tensor, encoder: Callable[[Tensor], Tensor], half: bool) -> Tensor:
        """What an encoder returns for images, which are checked."""
        shape = tuple(images.shape)
        if images.ndim != 4 or shape[1] != 3 or not images.is_floating_point():
            raise UserError(
                "images must be floats of shape (N, 3, h, w)",
                f"got {images.dtype} {shape}",
                "scale 8-bit pixels to [-1, 1] first",
            )
        if shape[2] % self.downscale or shape[3] % self.downscale or not (shape[2] and shape[3]):
            raise UserError(
                f"image sides must be multiples of {self.downscale} for tokenizer {self.name}",
                f"got {shape[2]} x {shape[3]}",
                "crop or resize the images",
            )
        if not torch.isfinite(images).all():
            raise UserError("images must be finite", "got NaN or infinity", "check what made them")
        try:
            with torch.autocast(images.device.type, torch.bfloat16, enabled=half):
                return encoder(images)
        except ValueError as error:  # a norm that has one value to take the mean of
            size = f"{shape[2]} x {shape[3]}: {error}"
            raise UserError(f"images are too small for tokenizer {self.name}", size, "enlarge them") from error

    def _from_images(self, images: ImageLike | Iterable[ImageLike]) -> Float[Tensor, "n 3 h w"]:
        from ggm_image.image.preprocess import to_model

        weight = next(self.parameters(), None)
        return to_model(pixel_batch(images).to("cpu" if weight is None else weight.device))

    @isolate
    def decode(self, tokens: Int[Tensor, "n gh gw"]) -> Float[Tensor, "n 3 h w"]:
        """Images of token grids, in float32 regardless of the caller's autocast and TF32 settings.

        Args:
            tokens: (N, H, W) integers in [0, codebook_size).

        Returns:
            (N, 3, H * downscale, W * downscale) floats in [-1, 1].

        Raises:
            UserError: for a wrong shape, a wrong type, or tokens out of range.
        """
        if tokens.ndim != 3 or tokens.is_floating_point():
            raise UserError(
                "tokens must be integers of shape (N, H, W)",
                f"got {tokens.dtype} {tuple(tokens.shape)}",
                "reshape (N, L) to (N, H, W)",
            )
        if tokens.numel() and (int(tokens.min()) < 0 or int(tokens.max()) >= self.codebook_size):
            raise UserError(
                f"tokens must lie in [0, {self.codebook_size})",
                f"got {int(tokens.min())} to {int(tokens.max())}",
                "was this set encoded with another tokenizer?",
            )
        return self.decode_indices(tokens.long()).clamp(-1, 1)


class Architecture(Protocol):
    """A family's dataclass of sizes; its fields are the entries of ``architecture`` in config.yaml."""

    @property
    def codebook_size(self) -> int: ...

    @property
    def downscale(self) -> int: ...

    @property
    def image_size(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Family:
    """Tokenizers of one code base: the same network under the same names.

    Attributes:
        network: an untrained tokenizer from that dataclass, a name and a SHA-256.
        our_names: from the names in a published file to ``{our name: its name}``, without what is not needed;
            our own names stay as they are.
        from_shapes: the sizes that a published file without a config must have, or None if it is of another family.
    """

    name: str
    config: type[Any]
    network: Callable[..., Tokenizer]
    our_names: Callable[[Iterable[str]], dict[str, str]]
    from_shapes: Callable[[Mapping[str, tuple[int, ...]]], dict[str, Any] | None]
