"""The perceptual loss of a timm classifier: its scale, its offsets, and what it can see."""

import pytest
import timm
import torch
import torch.nn.functional as F

from ggm_image.errors import UserError
from ggm_image.training.vqgan.perceptual import hold_products_in_bf16
from ggm_image.training.vqgan.timm_perceptual import TimmPerceptual, resize_matrix
from tests.pretend_cuda import pretend_cuda


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


@pytest.mark.parametrize(("side", "larger"), [(32, 96), (8, 96), (16, 24), (32, 32), (48, 20)])
def test_enlarging_is_torchs_bicubic(side: int, larger: int) -> None:
    """As two products of matrices, with the edges reflected; the gradient too."""
    matrix, images = resize_matrix(side, larger, 4), torch.rand(2, 3, side, side, requires_grad=True)
    expected = F.interpolate(images, size=(larger, larger), mode="bicubic", align_corners=False)
    expected = F.pad(expected, (4, 4, 4, 4), mode="reflect")
    found = matrix @ (images @ matrix.t())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    weights = torch.rand_like(expected)
    gradients = [torch.autograd.grad((x * weights).sum(), images)[0] for x in (found, expected)]
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(matrix.sum(1), torch.ones(larger + 8))


@pytest.mark.parametrize("offset", [(0, 0), (-4, 4), (3, -1)])
def test_images_that_are_enlarged_and_moved(network: torch.nn.Module, offset: tuple[int, int]) -> None:
    """The same pixels as from torch's own interpolation, padding and cutting."""
    loss, images = TimmPerceptual(network, size=40), torch.rand(2, 3, 16, 24) * 2 - 1
    larger = F.interpolate(images, size=(40, 40), mode="bicubic", align_corners=False)
    top, left = 4 + offset[0], 4 + offset[1]
    expected = F.pad(larger, (4, 4, 4, 4), mode="reflect")[..., top : top + 40, left : left + 40]
    with torch.autocast("cpu", torch.bfloat16):
        found = loss._moved(images, offset)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("stages", [(0, 1, 2, 3), (0, 2)])
def test_no_layer_beyond_the_last_stage_is_computed(network: torch.nn.Module, stages: tuple[int, ...]) -> None:
    """Seen to fail with timm's body as it is: 48 convolutions for whatever stages."""
    loss = TimmPerceptual(network, stages=stages)
    used = [0]
    for part in loss.body.modules():
        if isinstance(part, torch.nn.Conv2d):
            part.register_forward_hook(lambda *_: used.__setitem__(0, used[0] + 1))
    images = (torch.rand(1, 3, 32, 32) * 2 - 1).requires_grad_()
    features = loss.features(images)
    assert used[0] == {3: 33, 2: 15}[stages[-1]]
    whole = timm.create_model("tf_efficientnet_lite0", pretrained=False, features_only=True, out_indices=stages).eval()
    whole.load_state_dict({key: network.state_dict()[key] for key in whole.state_dict()})
    scaled = loss._moved(images, (0, 0)) * loss.scale + loss.shift
    for found, expected in zip(features, whole(scaled), strict=True):
        torch.testing.assert_close(found, expected)


def test_weights_of_products_are_rounded_once(network: torch.nn.Module) -> None:
    """The same distance as autocast's own, and no weight is converted any more."""
    distances, copies = [], []
    torch.manual_seed(2)
    pair = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    for held in (False, True):
        with pretend_cuda() as log:
            loss = TimmPerceptual(network, size=32).to("cuda")
            if held:
                hold_products_in_bf16(loss)
            a, b = pair.to("cuda")
            torch.manual_seed(0)
            with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
                loss(a, b)
                log.clear()
                torch.manual_seed(0)
                distances.append(float(loss(a, b).cpu()))
            copies.append(log.launches["_to_copy"])
            assert not log.mixed
            assert not log.copies
    assert distances[0] == distances[1]
    assert copies[0] - copies[1] == 2 * 33
