"""Samples that follow a guide image: a small image to enlarge, an image to vary, or colour hints.

The guide is an observation in the heat bath, see `ggm_image.sampler.observation`: the tokenizer encodes it, and codes
near its latents become more likely. The same term holds the finer scales of inpainting to the coarser ones.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.image.guide import load_guide
from ggm_image.image.inputs import ImageLike
from ggm_image.image.preprocess import to_model
from ggm_image.sampler.observation import latent_log_likelihood

if TYPE_CHECKING:
    from ggm_image.pipelines.image import Model

STRENGTH = 1.0
"""How closely samples follow a guide: the default of `Model.sample`."""


@dataclass(frozen=True)
class Guide:
    """A guide image as a model sees it; make one with `encode_guide`.

    Attributes:
        observation: (1, L, V) log-likelihood of every code at every site.
        sha256: of the pixels and the opacity that were encoded.
        strength: how closely the samples follow it, 1 / tau.
    """

    observation: Float[Tensor, "1 l v"]
    sha256: str
    strength: float

    @property
    def described(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"guide": {"sha256": self.sha256, "strength": self.strength}}


def check_strength(strength: float) -> float:
    """A strength as a number."""
    if isinstance(strength, bool) or not (strength > 0 and math.isfinite(strength) and math.isfinite(1 / strength)):
        fix = "use for example 1; larger values follow the guide more closely"
        raise UserError("the strength of a guide must be positive", strength, fix)
    return float(strength)


def encode_guide(model: Model, guide: ImageLike, strength: float = STRENGTH) -> Guide:
    """A guide image as log-likelihoods of a model's codes.

    A site counts by the mean opacity of its cell: transparent parts guide nothing.

    Args:
        strength: > 0; the likelihood is exp(-strength |z_i - e_a|^2 / d), see `latent_log_likelihood`.
    """
    strength = check_strength(strength)
    pixels, opacity = load_guide(guide, model.image_size)
    distances = model.tokenizer.code_distances(to_model(pixels)[None].to(model.device)).cpu()  # (1, rows, columns, v)
    weight = F.avg_pool2d(opacity[None], model.tokenizer.downscale).flatten(1)  # (1, l)
    observation = latent_log_likelihood(distances.flatten(1, 2), 1 / strength, weight)
    digest = hashlib.sha256(pixels.numpy().tobytes() + opacity.numpy().tobytes()).hexdigest()
    return Guide(observation, digest, strength)
