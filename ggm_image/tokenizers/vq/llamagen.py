"""LlamaGen's image tokenizers (Sun et al. 2024, arXiv 2406.06525): taming's network, codes on the unit sphere.

https://github.com/FoundationVision/LlamaGen, tokenizer/tokenizer_image/vq_model.py: latents and codes are divided by
their length before they are compared, and the decoder gets the codes so divided. Attention is at the lowest
resolution only. Published as ``{"model": state dict}`` without a config; ``codebook_used`` is a training statistic.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ggm_image.tokenizers.base import Family
from ggm_image.tokenizers.vq.taming import PARTS, ddconfig_from_shapes
from ggm_image.tokenizers.vq.vqgan import VQGAN, Codebook, VQGANConfig

MIDDLE = {"0": "block_1", "1": "attn_1", "2": "block_2"}


class SphereCodebook(Codebook):
    """Nearest code by angle."""

    def codes(self) -> Float[Tensor, "v e"]:
        return F.normalize(self.embedding.weight, dim=-1)

    def nearest(self, z: Float[Tensor, "m e"]) -> Int[Tensor, " m"]:
        return super().nearest(F.normalize(z, dim=-1))

    def squared_distances(self, z: Float[Tensor, "m e"]) -> Float[Tensor, "m v"]:
        return super().squared_distances(F.normalize(z, dim=-1))


class LlamaGenVQGAN(VQGAN):
    """`VQGAN` with a codebook on the unit sphere."""

    def make_codebook(self, codes: int, width: int) -> nn.Module:
        return SphereCodebook(codes, width)


def our_names(names: Iterable[str]) -> dict[str, str]:
    """taming's names for LlamaGen's; its decoder counts levels from the lowest resolution on."""
    names = [name for name in names if name.startswith(PARTS) and name != "quantize.codebook_used"]
    levels = len({name.split(".")[2] for name in names if name.startswith("decoder.conv_blocks.")})

    def ours(name: str) -> str:
        name = re.sub(r"^(encoder|decoder)\.mid\.(\d)\.", lambda m: f"{m[1]}.mid.{MIDDLE[m[2]]}.", name)
        name = re.sub(r"\.conv_blocks\.(\d+)\.res\.", r".conv_blocks.\1.block.", name)
        name = re.sub(r"^encoder\.conv_blocks\.", "encoder.down.", name)
        return re.sub(r"^decoder\.conv_blocks\.(\d+)\.", lambda m: f"decoder.up.{levels - 1 - int(m[1])}.", name)

    return {ours(name): name for name in names}


def from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """Sizes by the shapes of a checkpoint: nothing else is published with it."""
    if "encoder.conv_blocks.0.res.0.conv1.weight" not in shapes or "quantize.embedding.weight" not in shapes:
        return None
    codes, width = shapes["quantize.embedding.weight"]
    sizes = {name: shapes[theirs] for name, theirs in our_names(shapes).items()}
    return {"n_embed": codes, "embed_dim": width, "ddconfig": ddconfig_from_shapes(sizes)}


FAMILY = Family(
    name="llamagen", config=VQGANConfig, network=LlamaGenVQGAN, our_names=our_names, from_shapes=from_shapes
)
