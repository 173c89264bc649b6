"""MaskGIT's VQGAN (Chang et al. 2022, arXiv 2202.04200) in its PyTorch port.

https://github.com/huggingface/open-muse, muse/modeling_maskgit_vqgan.py, and the same in
https://github.com/bytedance/1d-tokenizer. No attention; convolutions of the residual blocks have no bias; levels go
down by averaging; pixels lie in [0, 1]; latents are not projected before the codebook. One peculiarity of the port,
and so of its weights: where a residual block changes the width, the shortcut's 1 x 1 convolution is applied to the
block's output, not to its input.

Parameter names are the port's. Published as a bare state dict (.bin), or with a config.json.
"""

from collections.abc import Iterable, Mapping
from dataclasses import field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ggm_image.tokenizers.base import Family, Tokenizer
from ggm_image.tokenizers.vq.vqgan import Blocks, Codebook, Levels
from ggm_image.validation import PositiveInt, checked


@checked("architecture")
class MaskGitConfig:
    """Sizes, in the port's own names."""

    hidden_channels: PositiveInt = 128
    channel_mult: Levels = field(default_factory=lambda: [1, 1, 2, 2, 4])
    num_res_blocks: Blocks = 2
    z_channels: PositiveInt = 256
    num_embeddings: PositiveInt = 1024
    resolution: PositiveInt = 256
    num_channels: PositiveInt = 3

    @property
    def codebook_size(self) -> int:
        return self.num_embeddings

    @property
    def downscale(self) -> int:
        return 2 ** (len(self.channel_mult) - 1)

    @property
    def image_size(self) -> int:
        return self.resolution


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, width, eps=1e-6)


class ResidualBlock(nn.Module):
    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(width_in), _norm(width_out)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1, bias=False)
        if width_in != width_out:
            self.nin_shortcut = nn.Conv2d(width_out, width_out, 1, bias=False)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h w"]:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(h) if hasattr(self, "nin_shortcut") else x)


class Level(nn.Module):
    """Residual blocks of one resolution."""

    def __init__(self, width_in: int, width_out: int, blocks: int, *, upsample: bool = False) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResidualBlock(width_out if k else width_in, width_out) for k in range(blocks))
        if upsample:
            self.upsample_conv = nn.Conv2d(width_out, width_out, 3, padding=1)

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d h2 w2"]:
        for block in self.block:
            x = block(x)
        if hasattr(self, "upsample_conv"):
            x = self.upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


class Encoder(nn.Module):
    def __init__(self, config: MaskGitConfig) -> None:
        super().__init__()
        widths = [config.hidden_channels * m for m in config.channel_mult]
        self.conv_in = nn.Conv2d(config.num_channels, config.hidden_channels, 3, padding=1, bias=False)
        self.down = nn.ModuleList(
            Level(a, b, config.num_res_blocks)
            for a, b in zip([config.hidden_channels, *widths[:-1]], widths, strict=True)
        )
        self.mid = nn.ModuleList(ResidualBlock(widths[-1], widths[-1]) for _ in range(config.num_res_blocks))
        self.norm_out = _norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 1)

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n e gh gw"]:
        x = self.conv_in(x)
        for k, level in enumerate(self.down):
            x = level(x)
            if k < len(self.down) - 1:
                x = F.avg_pool2d(x, 2)
        for block in self.mid:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, config: MaskGitConfig) -> None:
        super().__init__()
        widths = [config.hidden_channels * m for m in config.channel_mult]
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = nn.ModuleList(ResidualBlock(widths[-1], widths[-1]) for _ in range(config.num_res_blocks))
        self.up = nn.ModuleList(  # numbered as the encoder's levels, run from the last to the first
            Level(a, b, config.num_res_blocks, upsample=k > 0)
            for k, (a, b) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        )
        self.norm_out = _norm(widths[0])
        self.conv_out = nn.Conv2d(widths[0], config.num_channels, 3, padding=1)

    def forward(self, z: Float[Tensor, "n e gh gw"]) -> Float[Tensor, "n 3 h w"]:
        x = self.conv_in(z)
        for block in self.mid:
            x = block(x)
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class AddmmCodebook(Codebook):
    """Nearest code by the port's expression, whose rounding is not taming's."""

    def distances(
        self, z: Float[Tensor, "m e"], codes: Float[Tensor, "v e"], squares: Float[Tensor, " v"]
    ) -> Float[Tensor, "m v"]:
        return torch.addmm(z.square().sum(dim=1, keepdim=True) + squares, z, codes.t(), alpha=-2.0)


class MaskGitVQGAN(Tokenizer):
    """MaskGIT's encoder, codebook and decoder."""

    def __init__(self, config: MaskGitConfig, *, name: str = "unnamed", sha256: str = "") -> None:
        super().__init__()
        self.config, self.name, self.sha256 = config, name, sha256
        self.codebook_size, self.downscale = config.codebook_size, config.downscale
        self.image_size = config.image_size
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantize = AddmmCodebook(config.num_embeddings, config.z_channels)

    def codebook_embeddings(self) -> Float[Tensor, "v e"]:
        return self.quantize.codes()

    def encode_indices(self, images: Float[Tensor, "n 3 h w"]) -> Int[Tensor, "n gh gw"]:
        z = self.encoder((images + 1) / 2).permute(0, 2, 3, 1).float()  # (n, gh, gw, e)
        return self.quantize.nearest(z.reshape(-1, z.shape[-1])).view(z.shape[:-1])

    def squared_distances(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n gh gw v"]:
        z = self.encoder((images + 1) / 2).permute(0, 2, 3, 1).float()  # (n, gh, gw, e)
        return self.quantize.squared_distances(z.reshape(-1, z.shape[-1])).view(*z.shape[:-1], -1)

    def decode_indices(self, tokens: Int[Tensor, "n gh gw"]) -> Float[Tensor, "n 3 h w"]:
        z = F.embedding(tokens, self.quantize.codes()).permute(0, 3, 1, 2)
        return 2 * self.decoder(z).float() - 1


def our_names(names: Iterable[str]) -> dict[str, str]:
    """The port's names are ours."""
    return {name: name for name in names if name.startswith(("encoder.", "decoder.", "quantize."))}


def from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """Sizes by the shapes of a state dict: none are published with the .bin."""
    marks = {"encoder.mid.0.conv1.weight", "encoder.down.0.block.0.conv1.weight", "quantize.embedding.weight"}
    if not marks <= shapes.keys():
        return None
    hidden, channels = shapes["encoder.conv_in.weight"][:2]
    levels = len({name.split(".")[2] for name in shapes if name.startswith("encoder.down.")})
    return {
        "hidden_channels": hidden,
        "channel_mult": [shapes[f"encoder.down.{k}.block.0.conv1.weight"][0] // hidden for k in range(levels)],
        "num_res_blocks": len({name.split(".")[4] for name in shapes if name.startswith("encoder.down.0.block.")}),
        "z_channels": shapes["quantize.embedding.weight"][1],
        "num_embeddings": shapes["quantize.embedding.weight"][0],
        "num_channels": channels,
    }


def from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our architecture for the port's config.json."""
    return {
        "hidden_channels": int(config.get("hidden_channels", 128)),
        "channel_mult": list(config.get("channel_mult", [1, 1, 2, 2, 4])),
        "num_res_blocks": int(config.get("num_res_blocks", 2)),
        "z_channels": int(config.get("z_channels", 256)),
        "num_embeddings": int(config.get("num_embeddings", 1024)),
        "resolution": int(config.get("resolution", 256)),
        "num_channels": int(config.get("num_channels", 3)),
    }


FAMILY = Family(
    name="maskgit", config=MaskGitConfig, network=MaskGitVQGAN, our_names=our_names, from_shapes=from_shapes
)
