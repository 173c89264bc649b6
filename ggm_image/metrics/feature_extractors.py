"""Feature networks: 8-bit images of any size to vectors whose Fréchet distance is measured.

| name | network | resize |
| --- | --- | --- |
| ``inception`` | clean-fid's InceptionV3, the network of the FID | clean-fid's, to 299 x 299 |
| ``clip`` | clean-fid's CLIP ViT-B/32, where the ``clip`` package is installed | clean-fid's, to 224 x 224 |
| ``efficientnet-lite0`` | EfficientNet-Lite0 on ImageNet; ``pip install 'ggm-image[features]'`` | to 128 x 128 |
| ``timm:NAME`` | any pretrained timm model without its head | the model's own |
| ``FILE.pt`` | a TorchScript file: uint8 (N, 3, H, W) in, float (N, D) out | inside the file |

Parmar, Zhang, Zhu, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation", arXiv 2104.11222,
says why the resize is part of a figure. Only ``inception`` gives figures that may be called FID.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from ggm_image.classifiers import last_line, timm_network
from ggm_image.errors import UserError, suggest
from ggm_image.image.io import to_pil
from ggm_image.io.download import fetch
from ggm_image.io.files import sha256_file
from ggm_image.runtime.numerics import exact_arithmetic

_INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
_CLIP_SHA256 = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
_CLIP_URL = f"https://openaipublic.azureedge.net/clip/models/{_CLIP_SHA256}/ViT-B-32.pt"
INCEPTION_VARIABLE = "GGM_IMAGE_INCEPTION"
_INCEPTION_FILE = "inception-2015-12-05.pt"
_FORMS = "inception, clip, efficientnet-lite0, timm:NAME or the path of a TorchScript FILE.pt"


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A feature network with everything that belongs to its figures.

    Attributes:
        name: what it was asked for by.
        title: what its Fréchet distance may be called: ``FID`` for Inception, ``FD (...)`` for all others.
        sha256: of the file with the weights.
        dimension: length of a feature vector.
        resize: how images come to the network's size, in words.
        prepare: one image, uint8 (3, h, w), to the network's input, on the CPU; safe to call from threads.
        network: a batch of such inputs to features (n, d).
        logits: the same inputs to class scores, where the network is a classifier that offers them.
        prepare_batch: as ``prepare`` for a batch of images of one size, uint8 (n, 3, h, w), on their device; None where
            there is no such way.
    """

    name: str
    title: str
    sha256: str
    dimension: int
    resize: str
    device: torch.device
    prepare: Callable[[Tensor], Tensor]
    network: Callable[[Tensor], Tensor]
    logits: Callable[[Tensor], Tensor] | None = None
    prepare_batch: Callable[[Tensor], Tensor] | None = None

    def __call__(self, images: Sequence[UInt8[Tensor, "3 _ _"]] | Tensor) -> Float64[np.ndarray, "n d"]:
        """Features of a batch of images, which may differ in size.

        Args:
            images: uint8 images (3, h, w), values in [0, 255]: a tensor of them or a sequence.
        """
        return self.run(self.network, [self.prepare(image) for image in images])

    def identity(self) -> dict[str, Any]:
        """What its features depend on, but for the libraries' versions."""
        return {
            "name": self.name if self.name.startswith("timm:") else Path(self.name).name,
            "sha256": self.sha256,
            "dimension": self.dimension,
            "resize": self.resize,
        }

    def run(self, network: Callable[[Tensor], Tensor], inputs: Sequence[Tensor]) -> Float64[np.ndarray, "n d"]:
        """``network`` on prepared ``inputs``, those of one size together; rows in the order of ``inputs``."""
        groups: dict[torch.Size, list[int]] = {}
        for k, image in enumerate(inputs):
            groups.setdefault(image.shape, []).append(k)
        rows: list[Any] = [None] * len(inputs)
        with exact_arithmetic():
            for indices in groups.values():
                values = network(torch.stack([inputs[k] for k in indices]).to(self.device))
                for k, row in zip(indices, values.double().cpu().numpy(), strict=True):
                    rows[k] = row
        return np.stack(rows)


def load_extractor(
    name: str, *, weights: str | os.PathLike[str] | None = None, device: str | torch.device = "cpu"
) -> Extractor:
    """The feature network of a name, ready on ``device``.

    Args:
        name: ``inception``, ``clip``, ``efficientnet-lite0``, ``timm:NAME`` or the path of a TorchScript file. Such a
            file holds data and a program in TorchScript's own small language, no pickled Python objects; that
            program is run, so take files from people you trust.
        weights: local file with the weights of ``inception``, ``efficientnet-lite0`` or ``timm:NAME``, instead of a
            download or the package's.
            For Inception the environment variable ``GGM_IMAGE_INCEPTION`` does the same.
    """
    device = torch.device(device)
    if weights is not None and not Path(weights).is_file():
        raise UserError("file of weights not found", weights, "check the path")
    if name == "inception":
        return _inception(weights, device)
    if name.startswith("timm:"):
        return _timm(name, weights, device)
    if name == "efficientnet-lite0":
        from ggm_image.metrics import efficientnet_lite0

        return efficientnet_lite0.load_extractor(weights, device)
    if weights is not None:
        raise UserError(
            "only inception, efficientnet-lite0 and timm:NAME take a file of weights", name, "leave --weights out"
        )
    if name == "clip":
        return _clip(device)
    path = Path(name)
    if path.is_file():
        return _torchscript(path, device)
    if path.suffix or os.sep in name:
        raise UserError("file of features not found", name, f"give {_FORMS}")
    fix = suggest(name, ["inception", "clip", "efficientnet-lite0"], f"give {_FORMS}", cutoff=0.5)
    raise UserError("unknown features", name, fix)


@contextmanager
def _torchscript_unannounced() -> Iterator[None]:
    """torch deprecates its format from 2.10 on and still reads it; users cannot act on the warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*torch\.jit", category=FutureWarning)
        warnings.filterwarnings("ignore", message=r".*torch\.jit", category=DeprecationWarning)
        yield


def _torchscript(path: Path, device: torch.device) -> Extractor:
    try:
        with _torchscript_unannounced():
            network = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError) as error:
        fix = "write one by torch.jit.script(network).save(FILE)"
        raise UserError("features must be a TorchScript file", f"{path}: {last_line(error)}", fix) from error
    return Extractor(
        name=str(path),
        title=f"FD ({path.stem})",
        sha256=sha256_file(path),
        dimension=_dimension(network, path, device),
        resize="inside the network",
        device=device,
        prepare=lambda image: image,
        prepare_batch=lambda images: images,
        network=network,
        logits=network.logits if hasattr(network, "logits") else None,
    )


def _dimension(network: Callable[[Tensor], Tensor], path: Path, device: torch.device) -> int:
    """Length of the feature vector, by a trial; a network without a resize of its own takes one size only."""
    failure = ""
    for side in (32, 64, 224, 256, 299):
        try:
            with torch.inference_mode():
                features = network(torch.zeros(2, 3, side, side, dtype=torch.uint8, device=device))
        except (RuntimeError, torch.jit.Error) as error:
            failure = last_line(error)
            continue
        fits = isinstance(features, Tensor) and features.ndim == 2 and len(features) == 2 and features.shape[1]
        if fits and features.is_floating_point():
            return features.shape[1]
        got = f"{features.dtype} {tuple(features.shape)}" if isinstance(features, Tensor) else type(features)
        failure = f"it gives {got}"
    raise UserError(
        "features must take uint8 images (N, 3, H, W) and give floats (N, D)",
        f"{path}: {failure}",
        "wrap the network accordingly",
    )


def _inception(weights: str | os.PathLike[str] | None, device: torch.device) -> Extractor:
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    path = Path(weights or os.environ.get(INCEPTION_VARIABLE) or _downloaded_inception())
    # clean-fid takes the folder and knows the file's name.
    if path.name != _INCEPTION_FILE or not path.is_file():
        raise UserError(f"weights of inception must be a file {_INCEPTION_FILE}", path, "check path and name")
    try:
        with _torchscript_unannounced():
            network = InceptionV3W(str(path.parent), download=False).eval().to(device)
    except (RuntimeError, AttributeError, ValueError) as error:
        raise UserError(
            "weights of inception cannot be read", f"{path}: {last_line(error)}", "remove the file and fetch it again"
        ) from error
    resizer = build_resizer("clean")

    def prepare(image: Tensor) -> Tensor:
        return torch.from_numpy(resizer(image.permute(1, 2, 0).numpy())).permute(2, 0, 1)

    return Extractor(
        name="inception",
        title="FID",
        sha256=sha256_file(path),
        dimension=2048,
        resize="clean-fid: bicubic, antialiased, float, 299 x 299",
        device=device,
        prepare=prepare,
        network=network,
    )


def _downloaded_inception() -> Path:
    """The weights, fetched at the first use; a copy that torch.hub has is used too."""
    from cleanfid.downloads_helper import inception_url

    return fetch(
        _INCEPTION_FILE,
        [inception_url],
        folder="features",
        sha256=_INCEPTION_SHA256,
        elsewhere=[Path(torch.hub.get_dir()) / "checkpoints" / _INCEPTION_FILE],
        or_else=f"name it by --weights or {INCEPTION_VARIABLE}",
    )


def _clip(device: torch.device) -> Extractor:
    try:
        from cleanfid.clip_features import CLIP_fx, img_preprocess_clip
    except ImportError as error:
        raise UserError(
            "clip features need OpenAI's clip package",
            last_line(error),
            "pip install git+https://github.com/openai/CLIP.git, or use --features timm:NAME",
        ) from error
    path = fetch(
        "ViT-B-32.pt",
        [_CLIP_URL],
        folder="features",
        sha256=_CLIP_SHA256,
        elsewhere=[Path.home() / ".cache" / "clip" / "ViT-B-32.pt"],
        or_else="use other --features",
    )
    try:
        network = CLIP_fx(str(path), device=device)
    except (OSError, RuntimeError) as error:
        fix = "remove the file to fetch it again, or use other --features"
        raise UserError("weights of clip cannot be loaded", f"{path}: {last_line(error)}", fix) from error

    # clean-fid resizes for CLIP with its own function, which takes and gives arrays (h, w, 3).
    def prepare(image: Tensor) -> Tensor:
        return torch.from_numpy(img_preprocess_clip(image.permute(1, 2, 0).numpy())).permute(2, 0, 1)

    return Extractor(
        name="clip",
        title="FD (CLIP ViT-B/32)",
        sha256=sha256_file(path),
        dimension=512,
        resize="clean-fid: bicubic, antialiased, shorter side 224, centre crop, 8 bits",
        device=device,
        prepare=prepare,
        network=network,
    )


def _timm(name: str, weights: str | os.PathLike[str] | None, device: torch.device) -> Extractor:
    from timm.data import create_transform, resolve_model_data_config

    model_name = name.removeprefix("timm:")
    network, path = timm_network(model_name, weights)
    config = resolve_model_data_config(network)
    transform = create_transform(**config, is_training=False)
    size = " x ".join(map(str, config["input_size"][1:]))
    tag = network.pretrained_cfg.get("tag")
    return Extractor(
        name=name if weights or "." in model_name or not tag else f"{name}.{tag}",
        title=f"FD ({name})",
        sha256=sha256_file(path),
        dimension=network.num_features,
        resize=f"timm: {config['interpolation']}, {size}, crop {config['crop_pct']} {config['crop_mode']}",
        device=device,
        prepare=lambda image: transform(to_pil(image)),
        network=network.to(device),
    )
