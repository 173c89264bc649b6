"""VQGAN (Esser, Rombach, Ommer 2021, arXiv 2012.09841) from taming-transformers' Encoder and Decoder.

Parameter names are those of taming's ``VQModel`` (encoder, decoder, quantize.embedding, quant_conv,
post_quant_conv), so that its checkpoints fit. ``taming.models.vqgan`` itself does not import with
today's Lightning; only the modules that import cleanly are used.

Other families have the same encoder and decoder under other names and another codebook: they subclass `VQGAN`.
"""

import contextlib
import io
from dataclasses import asdict, field
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from ggm_image.errors import UserError
from ggm_image.tokenizers.base import Tokenizer
from ggm_image.validation import FIX, Number, PositiveInt, Whole, checked, one_of

DISTANCES_IN_MEMORY = 1 << 24  # rows x codes held at a time: 64 MiB in float32


Levels = Annotated[list[Annotated[Whole, Field(ge=1, le=1024)]], Field(min_length=1, max_length=12)]
"""Width of each level in units of the first; few, as a config may come from anywhere."""
Blocks = Annotated[Whole, Field(ge=1, le=64)]
"""Residual blocks of a level."""


@checked("architecture.ddconfig")
class DDConfig:
    """Architecture of the encoder and the decoder, in taming's own names."""

    ch: PositiveInt = 128
    ch_mult: Levels = field(default_factory=lambda: [1, 1, 2, 2, 4])
    num_res_blocks: Blocks = 2
    attn_resolutions: list[Whole] = field(default_factory=lambda: [16])
    resolution: Whole = 256
    z_channels: PositiveInt = 256
    in_channels: Literal[3] = 3
    out_ch: Literal[3] = 3
    dropout: Number = 0.0
    double_z: bool = False
    attn_type: Annotated[str, one_of(("vanilla", "none"))] = "vanilla"  # none, as in latent-diffusion: nowhere
    patch_size: Whole = 1  # not in taming: patch_size x patch_size pixels enter and leave as channels of one position

    def __post_init__(self) -> None:
        if self.patch_size not in (1, 2, 4) or self.resolution % self.patch_size:
            got = f"{self.patch_size} of {self.resolution}"
            raise UserError("patch_size must be 1, 2 or 4 and divide the resolution", got, FIX)
        if self.attn_type == "none" and self.attn_resolutions:
            raise UserError("attn_type none must have no attn_resolutions", self.attn_resolutions, FIX)


@checked("architecture")
class VQGANConfig:
    """A VQGAN: ``n_embed`` codes of ``embed_dim`` numbers between an encoder and a decoder."""

    n_embed: PositiveInt = 1024
    embed_dim: PositiveInt = 256
    ddconfig: DDConfig = field(default_factory=DDConfig)

    @property
    def codebook_size(self) -> int:
        return self.n_embed

    @property
    def downscale(self) -> int:
        return int(self.ddconfig.patch_size * 2 ** (len(self.ddconfig.ch_mult) - 1))

    @property
    def image_size(self) -> int:
        return self.ddconfig.resolution


class Codebook(nn.Module):
    """Nearest code by Euclidean distance, without one-hot matrices and in bounded memory."""

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, width)
        nn.init.uniform_(self.embedding.weight, -1.0 / codes, 1.0 / codes)

    def nearest(self, z: Float[Tensor, "m e"]) -> Int[Tensor, " m"]:
        """argmin over j of |z - e_j|^2, the lower index on a tie.

        The expression and its order of additions are taming's, so that the indices are too; in float32, as bfloat16
        cannot tell near codes apart.
        """
        codes = self.codes()
        rows = max(1, DISTANCES_IN_MEMORY // len(codes))
        with torch.autocast(z.device.type, enabled=False):
            squares = codes.square().sum(dim=1)
            found = [self.distances(part, codes, squares).argmin(dim=1) for part in z.split(rows)]
        return torch.cat(found) if found else torch.empty(0, dtype=torch.long, device=z.device)

    def codes(self) -> Float[Tensor, "v e"]:
        """The codes, as the decoder gets them."""
        return self.embedding.weight

    def distances(
        self, z: Float[Tensor, "m e"], codes: Float[Tensor, "v e"], squares: Float[Tensor, " v"]
    ) -> Float[Tensor, "m v"]:
        """Anything that is least at the nearest code; ``squares`` are the codes' squared lengths."""
        return z.square().sum(dim=1, keepdim=True) + squares - 2 * z @ codes.t()

    def squared_distances(self, z: Float[Tensor, "m e"]) -> Float[Tensor, "m v"]:
        """|z - e_j|^2 to every code, in float32."""
        codes = self.codes()
        with torch.autocast(z.device.type, enabled=False):
            squares = z.square().sum(dim=1, keepdim=True) + codes.square().sum(dim=1) - 2 * z @ codes.t()
        return squares.clamp(min=0)


class VQGAN(Tokenizer):
    """Convolutional encoder, codebook, convolutional decoder."""

    def __init__(self, config: VQGANConfig, *, name: str = "unnamed", sha256: str = "") -> None:
        super().__init__()
        from taming.modules.diffusionmodules.model import Decoder, Encoder

        self.config, self.name, self.sha256 = config, name, sha256
        arguments = asdict(config.ddconfig)
        # taming's networks run at 1 / patch_size of the resolution: full-resolution layers cost most and do least
        self.patch_size: int = arguments.pop("patch_size")
        for channels in ("in_channels", "out_ch"):
            arguments[channels] *= self.patch_size**2
        arguments["resolution"] //= self.patch_size
        with contextlib.redirect_stdout(io.StringIO()):  # taming's Decoder prints its latent shape
            self.encoder, self.decoder = Encoder(**arguments), Decoder(**arguments)
        if config.ddconfig.attn_type == "none":
            self.encoder.mid.attn_1 = self.decoder.mid.attn_1 = nn.Identity()
        self.quantize: Any = self.make_codebook(config.n_embed, config.embed_dim)
        self.quant_conv = nn.Conv2d(config.ddconfig.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.ddconfig.z_channels, 1)
        self.codebook_size, self.downscale = config.codebook_size, config.downscale
        self.image_size = config.image_size

    def make_codebook(self, codes: int, width: int) -> nn.Module:
        """A `Codebook`, or what a family has in its place."""
        return Codebook(codes, width)

    def latents(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n e gh gw"]:
        return self.quant_conv(self.encoder(F.pixel_unshuffle(images, self.patch_size)))

    def codes(self, tokens: Int[Tensor, "n gh gw"]) -> Float[Tensor, "n e gh gw"]:
        return F.embedding(tokens, self.quantize.codes()).permute(0, 3, 1, 2)

    def codebook_embeddings(self) -> Float[Tensor, "v e"]:
        return self.quantize.codes()

    def encode_indices(self, images: Float[Tensor, "n 3 h w"]) -> Int[Tensor, "n gh gw"]:
        z = self.latents(images).permute(0, 2, 3, 1).float()  # (n, gh, gw, e)
        return self.quantize.nearest(z.reshape(-1, z.shape[-1])).view(z.shape[:-1])

    def squared_distances(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n gh gw v"]:
        z = self.latents(images).permute(0, 2, 3, 1).float()  # (n, gh, gw, e)
        return self.quantize.squared_distances(z.reshape(-1, z.shape[-1])).view(*z.shape[:-1], -1)

    def decode_indices(self, tokens: Int[Tensor, "n gh gw"]) -> Float[Tensor, "n 3 h w"]:
        return F.pixel_shuffle(self.decoder(self.post_quant_conv(self.codes(tokens))), self.patch_size).float()
