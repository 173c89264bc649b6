"""A guide at the model's size: its centre, its colours and its opacity."""

import numpy as np
import pytest
import torch
from PIL import Image

from ggm_image.errors import UserError
from ggm_image.image.guide import load_guide


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (height, width, channels), dtype=np.uint8)


def test_a_guide_of_the_models_size_is_taken_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    pixels = noise(12, 16)
    found, opacity = load_guide(pixels, (12, 16))
    assert torch.equal(found, torch.from_numpy(pixels).permute(2, 0, 1))
    assert torch.equal(opacity, torch.ones(12, 16))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("size", [(3, 4), (60, 80)])
def test_other_sizes_are_resized(size: tuple[int, int], capsys: pytest.CaptureFixture[str]) -> None:
    image = Image.fromarray(noise(*size))
    found, _ = load_guide(image, (12, 16))
    assert np.array_equal(found.permute(1, 2, 0), np.asarray(image.resize((16, 12), Image.Resampling.BICUBIC)))
    assert ("reduced to 16 x 12 pixels" in capsys.readouterr().err) == (size == (60, 80))


# Seen to fail with the left upper part in place of the centre.
def test_the_centre_of_another_shape_is_used_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    pixels = noise(20, 48)
    found, _ = load_guide(pixels, (20, 20))
    assert np.array_equal(found.permute(1, 2, 0), pixels[:, 14:34])
    assert "only the centre is used, 20 x 20 of 48 x 20 pixels" in capsys.readouterr().err


# Seen to fail with transparent pixels composited on white, and with the colours under them.
def test_transparent_pixels_have_no_opacity_and_no_colour_of_their_own() -> None:
    pixels = noise(8, 8, 4)
    pixels[..., 3] = 0
    pixels[2, 3] = (200, 10, 30, 255)
    pixels[6, 6] = (0, 90, 40, 51)
    found, opacity = load_guide(pixels, (8, 8))
    assert opacity[2, 3] == 1
    assert float(opacity[6, 6]) == pytest.approx(0.2)
    assert int((opacity > 0).sum()) == 2
    assert found[:, 0, 0].tolist() == [200, 10, 30]
    assert found[:, 7, 7].tolist() == [0, 90, 40]
    palette = Image.fromarray(pixels).quantize(8, method=Image.Quantize.FASTOCTREE)
    assert load_guide(palette, (8, 8))[1].min() == 0
    with pytest.raises(UserError, match="transparent everywhere"):
        load_guide(np.zeros((8, 8, 4), dtype=np.uint8), (8, 8))
