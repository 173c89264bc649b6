"""Feature networks: small stand-ins for the real weights, which are too large to ship or fetch in a test."""

import sys
import types

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ggm_image.errors import UserError
from ggm_image.io.files import sha256_file
from ggm_image.metrics.feature_extractors import INCEPTION_VARIABLE, load_extractor

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")


class Means(nn.Module):
    """Channel means; scores are the means too, so the class is the strongest channel."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float().mean(dim=[2, 3])

    @torch.jit.export
    def logits(self, x: Tensor) -> Tensor:
        return x.float().mean(dim=[2, 3])


class Integers(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.long().sum(dim=[2, 3])


class OneSize(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float().reshape(x.size(0), 3 * 224 * 224)[:, :7]


def script(module, path):
    torch.jit.script(module).save(str(path))
    return str(path)


def images(*sizes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=generator) for h, w in sizes]


def test_torchscript_file(tmp_path):
    """Images of several sizes keep their order. Seen to fail with rows in the order of the groups."""
    path = script(Means(), tmp_path / "means.pt")
    extractor = load_extractor(path)
    batch = images((5, 4), (2, 2), (5, 4), (1, 1), (2, 2))
    features = extractor(batch)
    assert features.dtype == np.float64
    np.testing.assert_allclose(features, [x.double().mean(dim=(1, 2)).numpy() for x in batch], rtol=1e-6)
    assert extractor.title == "FD (means)"
    assert (extractor.dimension, extractor.sha256) == (3, sha256_file(path))
    assert extractor.logits is not None


def test_torchscript_of_one_input_size(tmp_path):
    assert load_extractor(script(OneSize(), tmp_path / "one.pt")).dimension == 7


def test_other_files_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(1)}, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="must be a TorchScript file.*checkpoint.pt"):
        load_extractor(str(tmp_path / "checkpoint.pt"))
    with pytest.raises(UserError, match="give floats.*int64"):
        load_extractor(script(Integers(), tmp_path / "integers.pt"))
    with pytest.raises(UserError, match="not found.*nothere.pt"):
        load_extractor(str(tmp_path / "nothere.pt"))
    with pytest.raises(UserError, match="file of weights not found"):
        load_extractor("inception", weights=tmp_path / "nothere.pt")


@pytest.mark.parametrize(
    ("name", "near"), [("incepton", "inception"), ("clipp", "clip"), ("timm:resnt18", "timm:resnet18")]
)
def test_misspelt_names(name, near):
    with pytest.raises(UserError, match=f"did you mean {near}?"):
        load_extractor(name)


class FakeInception(nn.Module):
    """What clean-fid takes from the published file: ``layers`` on (x - 128) / 128, 299 x 299."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2048))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_inception_is_clean_fids(tmp_path, monkeypatch):
    """The same numbers as clean-fid's own chain of resize and network. Seen to fail with torch's resize."""
    from cleanfid.features import feature_extractor
    from cleanfid.resize import build_resizer

    torch.manual_seed(0)
    path = script(FakeInception(), tmp_path / "inception-2015-12-05.pt")
    monkeypatch.setenv(INCEPTION_VARIABLE, path)
    extractor = load_extractor("inception")
    batch = images((32, 48), (400, 300), (1, 1))
    monkeypatch.setattr("cleanfid.features.InceptionV3W", _local_inception(tmp_path))
    network = feature_extractor(device=torch.device("cpu"), use_dataparallel=False)
    resize = build_resizer("clean")
    resized = [torch.from_numpy(resize(x.permute(1, 2, 0).numpy()).transpose(2, 0, 1)) for x in batch]
    with torch.inference_mode():
        expected = network(torch.stack(resized))
    np.testing.assert_allclose(extractor(batch), expected, rtol=1e-5, atol=1e-6)
    assert (extractor.title, extractor.sha256, extractor.dimension) == ("FID", sha256_file(path), 2048)


def _local_inception(folder):
    """clean-fid downloads into one fixed folder; here it finds the stand-in."""
    from cleanfid.inception_torchscript import InceptionV3W

    return lambda path, download, resize_inside: InceptionV3W(str(folder), False, resize_inside)


def test_inception_that_cannot_be_had(tmp_path, monkeypatch):
    """No weights, no connection: one line with the address and the ways out, and no half a file."""
    monkeypatch.delenv(INCEPTION_VARIABLE, raising=False)
    monkeypatch.setenv("GGM_IMAGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("cleanfid.downloads_helper.inception_url", "http://127.0.0.1:1/inception-2015-12-05.pt")
    for variable in ("GGM_IMAGE_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(UserError, match="cannot be downloaded.*inception-2015-12-05.pt: .*refused.*--weights"):
        load_extractor("inception")
    (tmp_path / "other.pt").write_bytes(b"")
    with pytest.raises(UserError, match="must be a file inception-2015-12-05.pt"):
        load_extractor("inception", weights=tmp_path / "other.pt")
    (tmp_path / "inception-2015-12-05.pt").write_bytes(b"half a download")
    with pytest.raises(UserError, match="weights of inception cannot be read"):
        load_extractor("inception", weights=tmp_path / "inception-2015-12-05.pt")


def test_clip_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "clip", None)
    monkeypatch.delitem(sys.modules, "cleanfid.clip_features", raising=False)
    with pytest.raises(UserError, match="need OpenAI's clip package"):
        load_extractor("clip")


def test_clip_with_its_package(tmp_path, monkeypatch):
    """clean-fid's wrapper around a stand-in for OpenAI's package, which is given a file and downloads nothing."""
    weights = tmp_path / "features" / "ViT-B-32.pt"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    monkeypatch.setenv("GGM_IMAGE_CACHE", str(tmp_path))
    given = []

    class Tower(nn.Module):
        def encode_image(self, x):
            assert x.shape[1:] == (3, 224, 224)
            return x.mean(dim=(2, 3)).repeat(1, 171)[:, :512]

    package = types.ModuleType("clip")
    package.load = lambda name, device: given.append(name) or (Tower(), None)
    monkeypatch.setitem(sys.modules, "clip", package)
    monkeypatch.delitem(sys.modules, "cleanfid.clip_features", raising=False)
    extractor = load_extractor("clip")
    assert extractor(images((32, 32), (300, 500))).shape == (2, 512)
    assert (extractor.title, extractor.sha256) == ("FD (CLIP ViT-B/32)", sha256_file(weights))
    assert given == [str(weights)]
    monkeypatch.delitem(sys.modules, "cleanfid.clip_features")


def test_timm_with_local_weights(tmp_path):
    """The weights of the file, the model's own resize, and no head."""
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = timm.create_model("test_vit").eval()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    extractor = load_extractor("timm:test_vit", weights=tmp_path / "model.safetensors")
    assert extractor.title == "FD (timm:test_vit)"
    assert extractor.sha256 == sha256_file(tmp_path / "model.safetensors")
    assert "160 x 160" in extractor.resize
    batch = images((20, 30), (200, 180))
    with torch.inference_mode():
        inputs = torch.stack([extractor.prepare(x) for x in batch])
        expected = model.forward_head(model.forward_features(inputs), pre_logits=True)
    np.testing.assert_allclose(extractor(batch), expected, rtol=1e-4, atol=1e-5)
    assert extractor.dimension == expected.shape[1]


def test_timm_takes_the_file_from_our_cache(tmp_path, monkeypatch):
    """By the model's full name, so that two sets of weights of one architecture do not mix."""
    import timm
    from safetensors.torch import save_file

    monkeypatch.setenv("GGM_IMAGE_CACHE", str(tmp_path))
    monkeypatch.setenv("GGM_IMAGE_OFFLINE", "1")
    torch.manual_seed(0)
    weights = tmp_path / "features" / "timm" / "test_vit.r160_in1k" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    save_file(timm.create_model("test_vit").state_dict(), weights)
    extractor = load_extractor("timm:test_vit")
    assert (extractor.name, extractor.sha256) == ("timm:test_vit.r160_in1k", sha256_file(weights))
