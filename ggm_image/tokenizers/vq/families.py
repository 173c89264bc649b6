"""The families of tokenizers that can be loaded, by their name in config.yaml."""

from ggm_image.tokenizers.base import Family
from ggm_image.tokenizers.vq import diffusers, gumbel, llamagen, maskgit, taming

FAMILIES: dict[str, Family] = {
    family.name: family for family in (taming.FAMILY, gumbel.FAMILY, diffusers.FAMILY, llamagen.FAMILY, maskgit.FAMILY)
}
