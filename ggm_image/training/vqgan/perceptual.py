"""Perceptual losses.

`Lpips` (Zhang et al. 2018, arXiv 1801.03924) uses taming's layers. taming's own class downloads into the current folder
and unpickles the download; here the two files come from a folder or are downloaded once into torch's hub cache, and
only tensors are read from them. `SmallPerceptual` uses the features of a small classifier, for images too small for VGG
or machines without network access; `ggm-image train-perceptual` trains it on the images themselves in minutes.
`timm_perceptual` has a third loss, from a classifier of timm.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ggm_image.errors import UserError
from ggm_image.io.download import fetch
from ggm_image.io.safetensors import load_weights, read_weights

VGG_FILE, VGG_URL = "vgg16-397923af.pth", "https://download.pytorch.org/models/vgg16-397923af.pth"
VGG_SHA256 = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"
LINEAR_FILE, LINEAR_URL = "vgg_lpips.pth", "https://heibox.uni-heidelberg.de/f/607503859c864bc1b30b/?dl=1"


class SmallPerceptual(nn.Module):
    """A convolutional classifier whose hidden layers are the features.

    Args:
        widths: channels of the layers; every layer after an even number of layers but the first halves the resolution.
    """

    def __init__(self, classes: int, widths: Sequence[int] = (64, 96, 96, 192, 192)) -> None:
        super().__init__()
        sizes = zip((3, *widths), widths, strict=False)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, 3, stride=2 if k in (1, 3) else 1, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()
            )
            for k, (a, b) in enumerate(sizes)
        )
        self.head = nn.Linear(widths[-1], classes)

    def activations(self, images: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        """The hidden layers' outputs, from fine to coarse."""
        found, x = [], images
        for layer in self.layers:
            x = layer(x)
            found.append(x)
        return found

    def logits(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        return self.head(self.activations(images)[-1].mean(dim=(2, 3)))

    def forward(self, a: Float[Tensor, "n 3 h w"], b: Float[Tensor, "n 3 h w"]) -> Float[Tensor, ""]:
        """Mean squared distance of unit-norm features, summed over the layers."""
        pairs = zip(self.activations(a), self.activations(b), strict=True)
        return torch.stack([(unit(x) - unit(y)).square().sum(dim=1).mean() for x, y in pairs]).sum()


def unit(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Features divided by their norm over the channels."""
    x = x.float()
    return x / (x.square().sum(dim=1, keepdim=True) + 1e-8).sqrt()


class Lpips(nn.Module):
    """Mean LPIPS of pairs of images in [-1, 1].

    Args:
        vgg: state of torchvision's VGG-16.
        linear: state of the five linear layers, ``lin0.model.1.weight`` ... ``lin4.model.1.weight``.
    """

    def __init__(self, vgg: Mapping[str, Tensor], linear: Mapping[str, Tensor]) -> None:
        super().__init__()
        from taming.modules.losses.lpips import NetLinLayer, ScalingLayer
        from torchvision.models import vgg16

        self.scaling = ScalingLayer()
        self.features = vgg16(weights=None).features
        widths = (64, 128, 256, 512, 512)
        self.linear = nn.ModuleList(NetLinLayer(width, use_dropout=True) for width in widths)
        try:
            self.features.load_state_dict(
                {k.removeprefix("features."): v for k, v in vgg.items() if k.startswith("features.")}
            )
            self.linear.load_state_dict({k.removeprefix("lin"): v for k, v in linear.items() if k.startswith("lin")})
        except RuntimeError as error:
            raise UserError(
                "perceptual weights must be torchvision's VGG-16 and LPIPS's linear layers",
                str(error).splitlines()[-1].strip(),
                f"put {VGG_FILE} and {LINEAR_FILE} there as published",
            ) from error
        self.eval().requires_grad_(False)

    def activations(self, images: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        """Unit-norm features after the last ReLU of each of the five resolutions."""
        x, found = self.scaling(images), []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in (3, 8, 15, 22, 29):
                found.append(unit(x))
        return found

    def forward(self, a: Float[Tensor, "n 3 h w"], b: Float[Tensor, "n 3 h w"]) -> Float[Tensor, ""]:
        pairs = zip(self.linear, self.activations(a), self.activations(b), strict=True)
        distances = [layer.get_submodule("model")((x - y).square()).mean() for layer, x, y in pairs]
        return torch.stack(distances).sum()


def hold_products_in_bf16(module: nn.Module) -> None:
    """Round the weights of a frozen module's products to bfloat16 once; autocast would do so at every pass.

    The module then works under bfloat16 autocast only, with the same results: its other weights stay in float32.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            part.to(torch.bfloat16)


def load_perceptual(source: str, size: int = 0) -> nn.Module | None:
    """A perceptual loss, in evaluation mode, without gradients of its own.

    Args:
        source: ``timm:NAME`` for a classifier of timm; a ``.safetensors`` file of `SmallPerceptual`; or, for LPIPS, a
            folder with ``vgg16-397923af.pth`` and ``vgg_lpips.pth``, or ``download``.
        size: pixels a side to which a classifier of timm enlarges the images; 0 leaves them as they are.

    Returns:
        The module, or None, with a warning, where the download fails.
    """
    if source.startswith("timm:"):
        from ggm_image.training.vqgan.timm_perceptual import load_timm_perceptual

        return load_timm_perceptual(source.removeprefix("timm:"), size)
    if source.endswith(".safetensors"):
        return _load_small(Path(source))
    if source == "download":
        try:
            return _load_lpips(*download_lpips())
        except UserError as error:
            warnings.warn(f"no perceptual loss: {error}", stacklevel=2)
            return None
    return _load_lpips(Path(source) / VGG_FILE, Path(source) / LINEAR_FILE)


def download_lpips() -> tuple[Path, Path]:
    """The files of VGG-16 and of LPIPS's linear layers, fetched at the first use."""
    kept, instead = Path(torch.hub.get_dir()) / "checkpoints", "set loss.perceptual_weights to a folder with both files"
    vgg = fetch(
        VGG_FILE, [VGG_URL], folder="perceptual", sha256=VGG_SHA256, elsewhere=[kept / VGG_FILE], or_else=instead
    )
    linear = fetch(LINEAR_FILE, [LINEAR_URL], folder="perceptual", elsewhere=[kept / LINEAR_FILE], or_else=instead)
    return vgg, linear


def _load_lpips(*paths: Path) -> Lpips:
    states = []
    for path in paths:
        if not path.is_file():
            raise UserError("perceptual weights are missing", f"no {path}", "name their folder")
        try:
            states.append(torch.load(path, map_location="cpu", weights_only=True))
        except Exception as error:  # a damaged or hostile pickle fails in many ways
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{path} must hold tensors", reason, "copy the published file again") from error
    return Lpips(*states)


def _load_small(path: Path) -> SmallPerceptual:
    state = read_weights(path)
    widths = [len(state[f"layers.{k}.0.weight"]) for k in range(len(state)) if f"layers.{k}.0.weight" in state]
    if not widths or "head.bias" not in state:
        raise UserError(
            "perceptual weights must be those of train-perceptual", f"{path}: other names", "train them again"
        )
    module = SmallPerceptual(len(state["head.bias"]), widths)
    load_weights(module, path)
    return module.eval().requires_grad_(False)
