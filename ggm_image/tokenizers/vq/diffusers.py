"""diffusers' VQModel folders: latent-diffusion's VQ models as converted there, and aMUSEd's (arXiv 2401.01808).

https://github.com/huggingface/diffusers, models/autoencoders/vq_model.py and vae.py. The network is taming's under
other names, attention as matrices instead of 1 x 1 convolutions (old files: query, key, value, proj_attn); the nearest
code is found by torch.cdist. The files are read straight, so diffusers itself is not needed.

Pixels: latent-diffusion's models take [-1, 1]; aMUSEd's takes [0, 1] (its pipeline has ``do_normalize=False``). The
configs do not state this, so it is inferred from ``lookup_from_codebook``, which only aMUSEd's sets, unless
``unit_range`` is given.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ggm_image.errors import UserError
from ggm_image.tokenizers.base import Family
from ggm_image.tokenizers.vq.taming import PARTS
from ggm_image.tokenizers.vq.vqgan import VQGAN, Codebook, VQGANConfig
from ggm_image.validation import checked

_RENAMED = (
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.attn_1."),
    (r"\.resnets\.(\d+)\.", r".block.\1."),
    (r"\.attentions\.(\d+)\.", r".attn.\1."),
    (r"\.(down|up)samplers\.0\.", r".\1sample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.group_norm\.", ".norm."),
    (r"\.(to_q|query)\.(\w+)$", r".q.\2"),
    (r"\.(to_k|key)\.(\w+)$", r".k.\2"),
    (r"\.(to_v|value)\.(\w+)$", r".v.\2"),
    (r"\.(to_out\.0|proj_attn)\.(\w+)$", r".proj_out.\2"),
    (r"^encoder\.down_blocks\.", "encoder.down."),
)


@checked("architecture")
class DiffusersConfig(VQGANConfig):
    """`VQGANConfig`, and whether the network's pixels lie in [0, 1] instead of [-1, 1]."""

    unit_range: bool = False


class CdistCodebook(Codebook):
    """Nearest code by torch.cdist, whose rounding is not taming's."""

    def distances(
        self, z: Float[Tensor, "m e"], codes: Float[Tensor, "v e"], squares: Float[Tensor, " v"]
    ) -> Float[Tensor, "m v"]:
        return torch.cdist(z, codes)


class DiffusersVQGAN(VQGAN):
    """`VQGAN` as diffusers runs it."""

    config: DiffusersConfig

    def make_codebook(self, codes: int, width: int) -> nn.Module:
        return CdistCodebook(codes, width)

    def encode_indices(self, images: Float[Tensor, "n 3 h w"]) -> Int[Tensor, "n gh gw"]:
        return super().encode_indices((images + 1) / 2 if self.config.unit_range else images)

    def squared_distances(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n gh gw v"]:
        return super().squared_distances((images + 1) / 2 if self.config.unit_range else images)

    def decode_indices(self, tokens: Int[Tensor, "n gh gw"]) -> Float[Tensor, "n 3 h w"]:
        images = super().decode_indices(tokens)
        return 2 * images - 1 if self.config.unit_range else images


def our_names(names: Iterable[str]) -> dict[str, str]:
    """taming's names for diffusers'; its decoder counts levels from the lowest resolution on."""
    names = [name for name in names if name.startswith(PARTS)]
    levels = len({name.split(".")[2] for name in names if name.startswith("decoder.up_blocks.")})

    def ours(name: str) -> str:
        for pattern, replacement in _RENAMED:
            name = re.sub(pattern, replacement, name)
        return re.sub(r"^decoder\.up_blocks\.(\d+)\.", lambda m: f"decoder.up.{levels - 1 - int(m[1])}.", name)

    return {ours(name): name for name in names}


def from_config(config: Mapping[str, Any], *, unit_range: bool | None = None) -> dict[str, Any]:
    """Our architecture for the config.json of a VQModel.

    Args:
        unit_range: whether pixels lie in [0, 1]; None to go by ``lookup_from_codebook``.
    """
    channels = list(config.get("block_out_channels", [64]))
    down, up = list(config.get("down_block_types", [])), list(config.get("up_block_types", []))
    attention = [kind.startswith("Attn") for kind in down]
    middle = config.get("mid_block_add_attention", True)
    supported = (
        config.get("norm_type", "group") == "group"
        and config.get("norm_num_groups", 32) == 32
        and config.get("act_fn", "silu") in ("silu", "swish")
        and set(down) <= {"DownEncoderBlock2D", "AttnDownEncoderBlock2D"}
        and set(up) <= {"UpDecoderBlock2D", "AttnUpDecoderBlock2D"}
        and [kind.startswith("Attn") for kind in reversed(up)] == attention
        and all(c % channels[0] == 0 for c in channels)
        and (middle or not any(attention))
    )
    if not supported:
        got = {key: config.get(key) for key in ("norm_type", "act_fn", "down_block_types", "up_block_types")}
        raise UserError("a diffusers VQModel must be a VQGAN of taming's kind", got, "use another tokenizer")
    # Its default sample_size of 32 is often left in and says nothing.
    size = int(config.get("sample_size", 32))
    resolution = size if size >= 64 else 256
    latent = int(config.get("latent_channels", 3))
    return {
        "n_embed": int(config.get("num_vq_embeddings", 256)),
        "embed_dim": int(config.get("vq_embed_dim") or latent),
        "unit_range": bool(config.get("lookup_from_codebook")) if unit_range is None else unit_range,
        "ddconfig": {
            "ch": channels[0],
            "ch_mult": [c // channels[0] for c in channels],
            "num_res_blocks": int(config.get("layers_per_block", 1)),
            "attn_resolutions": [resolution >> level for level, has in enumerate(attention) if has],
            "resolution": resolution,
            "z_channels": latent,
            "in_channels": int(config.get("in_channels", 3)),
            "out_ch": int(config.get("out_channels", 3)),
            "attn_type": "vanilla" if middle else "none",
        },
    }


FAMILY = Family(
    name="diffusers",
    config=DiffusersConfig,
    network=DiffusersVQGAN,
    our_names=our_names,
    from_shapes=lambda shapes: None,  # its pixels' range stands nowhere in the weights
)
