"""The perceptual loss of a timm classifier: its scale, its offsets, and what it can see."""

import pytest
import timm
import torch

from ggm_image.errors import UserError
from ggm_image.training.vqgan.timm_perceptual import TimmPerceptual


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()


def test_features_are_those_of_the_classifier(network: torch.nn.Module) -> None:
    """Stage by stage, on images in the classifier's own normalisation."""
    loss = TimmPerceptual(network)
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    mean, std = (torch.tensor(network.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    x = network.bn1(network.conv_stem(((images + 1) / 2 - mean) / std))
    expected = []
    for stage in network.blocks[:5]:
        x = stage(x)
        expected.append(x)
    found = loss.features(images)
    assert [tuple(x.shape[1:]) for x in found] == [(16, 32, 32), (24, 16, 16), (40, 8, 8), (112, 4, 4)]
    for ours, theirs in zip(found, (expected[k] for k in (0, 1, 2, 4)), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_distance_is_zero_for_the_same_images_and_grows_with_noise(network: torch.nn.Module) -> None:
    torch.manual_seed(1)
    loss = TimmPerceptual(network, size=64)
    a, noise = torch.rand(2, 3, 32, 32) * 2 - 1, torch.randn(2, 3, 32, 32)
    distances = [float(loss(a, a + share * noise)) for share in (0.0, 0.05, 0.3)]
    assert distances[0] == 0
    assert 0 < distances[1] < distances[2]


def test_both_images_move_alike(network: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen to fail with an offset of its own for each image."""
    loss, seen = TimmPerceptual(network), []
    moved = loss._moved
    monkeypatch.setattr(loss, "_moved", lambda x, offset: seen.append(offset) or moved(x, offset))
    images = torch.rand(1, 3, 32, 32)
    torch.manual_seed(0)
    for _ in range(20):
        assert float(loss(images, images)) == 0
    assert seen[::2] == seen[1::2]
    assert len(set(seen)) > 10
    assert all(-loss.MARGIN <= part <= loss.MARGIN for offset in seen for part in offset)


def test_gradients_reach_the_images_and_not_the_network(network: torch.nn.Module) -> None:
    loss = TimmPerceptual(network, size=48)
    images = (torch.rand(1, 3, 32, 32) * 2 - 1).requires_grad_()
    loss(torch.zeros(1, 3, 32, 32), images).backward()
    assert images.grad is not None
    assert float(images.grad.abs().min(dim=1).values.mean()) > 0
    assert all(not weight.requires_grad for weight in loss.parameters())


def test_autocast_changes_nothing(network: torch.nn.Module) -> None:
    loss, a, b = TimmPerceptual(network, size=32), torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    torch.manual_seed(0)
    plain = loss(a, b)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(loss(a, b), plain)


def test_a_network_without_stages_is_refused() -> None:
    network = timm.create_model("mixer_s32_224", pretrained=False)
    with pytest.raises(UserError, match="feature stages.*mixer_s32_224"):
        TimmPerceptual(network)


@pytest.mark.slow
def test_compiled_it_is_the_same_distance(network: torch.nn.Module) -> None:
    loss, images = TimmPerceptual(network, size=32), torch.rand(2, 2, 3, 32, 32) * 2 - 1
    torch.manual_seed(0)
    plain = loss(*images)
    loss.compile()
    torch.manual_seed(0)
    assert float(loss(*images)) == pytest.approx(float(plain), rel=1e-5)
