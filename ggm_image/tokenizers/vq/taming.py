"""taming-transformers' VQModel, and latent-diffusion's VQModel and VQModelInterface.

arXiv 2012.09841, https://github.com/CompVis/taming-transformers, taming/models/vqgan.py; arXiv 2112.10752,
https://github.com/CompVis/latent-diffusion, ldm/models/autoencoder.py. Both quantise with taming's VectorQuantizer2,
whose ``legacy`` switch changes the loss only: the indices are those of `vqgan.Codebook`. VQModelInterface quantises
when it decodes instead of when it encodes; with indices in between that is the same.

Published as Lightning checkpoints: the loss (LPIPS, discriminator) and optimizer states beside the network are left in
the file. Some are published only inside the transformer or the diffusion model that was trained on them, under
``first_stage_model``.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ggm_image.errors import UserError
from ggm_image.tokenizers.base import Family
from ggm_image.tokenizers.vq.vqgan import VQGAN, VQGANConfig

PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
FIRST_STAGE = "first_stage_model."
TRAINED_AT = 256  # pixels: all published models are


def our_names(names: Iterable[str]) -> dict[str, str]:
    """The tokenizer's own parameters, without those of the model that it was published in."""
    names = list(names)
    prefix = FIRST_STAGE if any(name.startswith(FIRST_STAGE) for name in names) else ""
    found = {name.removeprefix(prefix): name for name in names if name.startswith(prefix)}
    if "quantize.used" in found:
        raise UserError("codes must be numbered as in the codebook", "a remapped quantizer", "use one without `remap`")
    return {name: theirs for name, theirs in found.items() if name.startswith(PARTS)}


def from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """Sizes by the shapes of a checkpoint, where they say all: no dropout, 256 pixels."""
    ours = our_names(shapes)
    sizes = {name: shapes[theirs] for name, theirs in ours.items()}
    if not {"encoder.down.0.block.0.conv1.weight", "quant_conv.weight", "quantize.embedding.weight"} <= sizes.keys():
        return None
    return {
        "n_embed": sizes["quantize.embedding.weight"][0],
        "embed_dim": sizes["quantize.embedding.weight"][1],
        "ddconfig": ddconfig_from_shapes(sizes),
    }


def ddconfig_from_shapes(sizes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Encoder and decoder by the shapes of their parameters, under our names."""

    def count(prefix: str) -> int:
        return len({name[len(prefix) :].split(".")[0] for name in sizes if name.startswith(prefix)})

    ch, channels = sizes["encoder.conv_in.weight"][:2]
    levels = range(count("encoder.down."))
    attention = [TRAINED_AT >> k for k in levels if f"encoder.down.{k}.attn.0.q.weight" in sizes]
    return {
        "ch": ch,
        "ch_mult": [sizes[f"encoder.down.{k}.block.0.conv1.weight"][0] // ch for k in levels],
        "num_res_blocks": count("encoder.down.0.block."),
        "attn_resolutions": attention,
        "resolution": TRAINED_AT,
        "z_channels": sizes["encoder.conv_out.weight"][0],
        "in_channels": channels,
        "out_ch": sizes["decoder.conv_out.weight"][0],
        "attn_type": "vanilla" if "encoder.mid.attn_1.q.weight" in sizes else "none",
    }


FAMILY = Family(name="taming", config=VQGANConfig, network=VQGAN, our_names=our_names, from_shapes=from_shapes)
