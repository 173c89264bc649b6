"""taming-transformers' GumbelVQ: codes are chosen by a linear layer, not by distance.

https://github.com/CompVis/taming-transformers, GumbelVQ in taming/models/vqgan.py and GumbelQuantize in
taming/modules/vqvae/quantize.py. There, the index is sampled with Gumbel noise even in evaluation. Here it is the mode
of that distribution, the largest logit, so that an image has one encoding (as in DALL-E,
arXiv 2102.12092).
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ggm_image.tokenizers.base import Family
from ggm_image.tokenizers.vq.taming import ddconfig_from_shapes, our_names
from ggm_image.tokenizers.vq.vqgan import VQGAN, VQGANConfig


class GumbelCodebook(nn.Module):
    """Logits of the codes by a 1 x 1 convolution, and the codes."""

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(width, codes, 1)
        self.embed = nn.Embedding(codes, width)


class GumbelVQGAN(VQGAN):
    """`VQGAN` with a Gumbel quantizer; ``embed_dim`` and ``z_channels`` are equal, as the original needs it."""

    def __init__(self, config: VQGANConfig, *, name: str = "unnamed", sha256: str = "") -> None:
        if config.embed_dim != config.ddconfig.z_channels:
            raise ValueError(f"embed_dim {config.embed_dim} must be z_channels {config.ddconfig.z_channels}")
        super().__init__(config, name=name, sha256=sha256)

    def make_codebook(self, codes: int, width: int) -> nn.Module:
        return GumbelCodebook(codes, width)

    def encode_indices(self, images: Float[Tensor, "n 3 h w"]) -> Int[Tensor, "n gh gw"]:
        # Image by image: logits are 8192 numbers a cell, 32 MiB for one image of 256 x 256.
        latents = self.latents(images).float()
        with torch.autocast(images.device.type, enabled=False):
            return torch.cat([self.quantize.proj(z).argmax(dim=1) for z in latents.split(1)])

    def squared_distances(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n gh gw v"]:
        latents = self.latents(images).float()
        with torch.autocast(images.device.type, enabled=False):
            return -self.quantize.proj(latents).log_softmax(dim=1).permute(0, 2, 3, 1)

    def codebook_embeddings(self) -> Float[Tensor, "v e"]:
        return self.quantize.embed.weight

    def codes(self, tokens: Int[Tensor, "n gh gw"]) -> Float[Tensor, "n e gh gw"]:
        return F.embedding(tokens, self.quantize.embed.weight).permute(0, 3, 1, 2)


def from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """Sizes by the shapes of a checkpoint."""
    sizes = {name: shapes[theirs] for name, theirs in our_names(shapes).items()}
    if not {"encoder.down.0.block.0.conv1.weight", "quantize.proj.weight", "quantize.embed.weight"} <= sizes.keys():
        return None
    codes, width = sizes["quantize.embed.weight"]
    return {"n_embed": codes, "embed_dim": width, "ddconfig": ddconfig_from_shapes(sizes)}


FAMILY = Family(name="gumbel", config=VQGANConfig, network=GumbelVQGAN, our_names=our_names, from_shapes=from_shapes)
