"""The families of tokenizers that can be loaded, by the name that stands in config.yaml."""

from ggm_image.tokenizers import diffusers_vq, gumbel, llamagen, maskgit, taming
from ggm_image.tokenizers.base import Family

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (taming.FAMILY, gumbel.FAMILY, diffusers_vq.FAMILY, llamagen.FAMILY, maskgit.FAMILY)
}
