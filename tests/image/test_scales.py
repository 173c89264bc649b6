"""The plan of a coarse-to-fine run: what it covers, where it lies, and what the known pixels become."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from ggm_image.errors import UserError
from ggm_image.image.scales import enlarge, plan_inpainting, pyramid, reduce_known
from ggm_image.image.windows import plan_windows

CELL, NATIVE = 4, (16, 16)


def hole_of(height, width, rows, columns):
    mask = np.zeros((height, width), dtype=bool)
    mask[rows[0] : rows[1], columns[0] : columns[1]] = True
    return mask


@pytest.mark.parametrize("seed", range(40))
def test_every_scale_covers_the_hole_and_the_last_is_the_image(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(CELL, 120, 2)
    top, left = rng.integers(0, height), rng.integers(0, width)
    mask = hole_of(height, width, (top, rng.integers(top, height) + 1), (left, rng.integers(left, width) + 1))
    context, scales = (None, int(rng.integers(0, 8)))[seed % 2], ("auto", 1, 2, 3)[seed % 4]
    plan = plan_inpainting(mask, NATIVE, CELL, context=context, scales=scales)
    assert plan.windows == plan_windows(mask, NATIVE, CELL, context)
    crop = plan.crop
    assert 0 <= crop.top <= crop.top + crop.height <= height
    assert 0 <= crop.left <= crop.left + crop.width <= width
    assert np.array_equal(plan.scales[-1].mask, mask[crop.slices])
    assert mask[crop.slices].sum() == mask.sum()
    factors = [scale.factor for scale in plan.scales]
    assert factors == sorted(factors, reverse=True)
    assert factors[-1] == 1
    if scales == "auto":
        assert all(a / b <= 2 + 1e-9 for a, b in pairwise(factors))
    else:
        assert len(factors) <= scales
    for scale in plan.scales:
        missing = scale.mask.copy()
        for window in scale.windows:
            assert missing[window.slices].any()
            assert window.slices[0].stop <= missing.shape[0]
            assert window.slices[1].stop <= missing.shape[1]
            missing[window.slices] = False
        assert not missing.any()


def test_a_hole_that_fits_needs_one_scale_and_a_small_crop():
    for size in (1, 4, 8):
        plan = plan_inpainting(hole_of(500, 700, (250, 250 + size), (300, 304)), NATIVE, CELL)
        assert [scale.factor for scale in plan.scales] == [1.0]
        assert plan.crop.height <= 24
        assert plan.crop.width <= 24


def test_the_coarsest_scale_shows_hole_and_context_in_one_window():
    plan = plan_inpainting(hole_of(200, 200, (60, 124), (70, 134)), NATIVE, CELL)
    assert plan.factor == 8  # a hole of 64 pixels in the middle half of a window of 16
    assert [scale.factor for scale in plan.scales] == pytest.approx([8, 4, 2, 1])
    assert plan.scales[0].mask.shape == (16, 16)
    assert np.array_equal(plan.scales[0].mask, hole_of(16, 16, (4, 12), (4, 12)))
    assert (plan.crop.top, plan.crop.left, plan.crop.height, plan.crop.width) == (28, 38, 128, 128)
    assert len(plan.scales[0].windows) == 1


def test_strokes_that_are_thin_need_no_coarse_scale_however_long():
    mask = hole_of(200, 200, (100, 106), (0, 200)) | hole_of(200, 200, (0, 200), (30, 36))
    assert len(plan_inpainting(mask, NATIVE, CELL).scales) == 1


def test_the_whole_image_and_a_border_are_limited_by_the_shorter_side():
    plan = plan_inpainting(np.ones((64, 96), bool), NATIVE, CELL)
    assert math.isinf(plan.width)
    assert plan.scales[0].mask.shape == (16, 24)
    corner = plan_inpainting(hole_of(64, 96, (0, 64), (0, 40)), NATIVE, CELL)
    assert corner.factor == 4
    assert corner.crop.left == 0
    assert corner.crop.width >= 40 + 4 * 4


def test_nothing_under_the_mask_reaches_a_coarse_pixel():
    # seen to fail with a plain reduction: the hole's colour leaks into the pixels at its border
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 40, 40), dtype=torch.uint8, generator=generator)
    mask = hole_of(40, 40, (9, 31), (11, 30))
    other = torch.where(torch.from_numpy(mask), 255 - image, image)
    plan = plan_inpainting(mask, NATIVE, CELL)
    assert len(plan.scales) > 1
    for (scale, first), (_, second) in zip(pyramid(image, plan), pyramid(other, plan), strict=True):
        assert torch.equal(first[:, torch.from_numpy(~scale.mask)], second[:, torch.from_numpy(~scale.mask)])
    halves = torch.tensor([[[10, 20], [200, 200]]], dtype=torch.uint8).expand(3, -1, -1)
    found = reduce_known(halves, np.array([[False, False], [True, True]]), (1, 1))
    assert found.flatten().tolist() == [15, 15, 15]


def test_enlarging_keeps_a_flat_image_and_does_not_mix_images():
    images = torch.stack([torch.full((3, 4, 4), v, dtype=torch.uint8) for v in (0, 130, 255)])
    larger = enlarge(images, (9, 7))
    assert torch.equal(larger, images[:, :, :1, :1].expand(-1, -1, 9, 7))


@pytest.mark.parametrize("scales", [0, -1, 1.0, True, "all", None])
def test_what_is_no_number_of_scales_is_refused(scales):
    with pytest.raises(UserError, match="scales must be auto"):
        plan_inpainting(np.ones((16, 16), bool), NATIVE, CELL, scales=scales)
