"""Windows cover every hole and show what is known; the border correction meets the known pixels."""

import itertools

import numpy as np
import pytest
import torch

from ggm_image.errors import UserError
from ggm_image.image.blending import blend_seam
from ggm_image.image.extension import Extension
from ggm_image.image.windows import Window, place_under, plan_windows, spans

CELL, NATIVE = 4, (16, 16)


def hole_of(height, width, rows, columns):
    mask = np.zeros((height, width), dtype=bool)
    mask[rows[0] : rows[1], columns[0] : columns[1]] = True
    return mask


@pytest.mark.parametrize("seed", range(40))
def test_windows_cover_the_hole_and_stay_inside(seed):
    """Seen to fail with one window too few, and with windows clamped at the wrong end."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(CELL, 90, 2)
    top, left = rng.integers(0, height), rng.integers(0, width)
    mask = hole_of(height, width, (top, rng.integers(top, height) + 1), (left, rng.integers(left, width) + 1))
    windows = plan_windows(mask, NATIVE, CELL, context=int(rng.integers(0, 8)))
    missing = mask.copy()
    for window in windows:
        assert missing[window.slices].any()
        assert window.height % CELL == window.width % CELL == 0
        assert (window.height, window.width) == tuple(min(16, side // CELL * CELL) for side in (height, width))
        assert 0 <= window.top <= height - window.height
        assert 0 <= window.left <= width - window.width
        missing[window.slices] = False
    assert not missing.any()


def test_a_small_hole_is_one_window_around_it():
    [window] = plan_windows(hole_of(100, 200, (50, 54), (120, 124)), NATIVE, CELL)
    assert window == Window(44, 114, 16, 16)
    [corner] = plan_windows(hole_of(100, 200, (0, 4), (196, 200)), NATIVE, CELL)
    assert corner == Window(0, 184, 16, 16)
    [own] = plan_windows(hole_of(16, 16, (0, 16), (0, 16)), NATIVE, CELL)
    assert own == Window(0, 0, 16, 16)


def test_tiles_overlap_by_the_context_and_the_best_known_comes_first():
    mask = hole_of(60, 60, (10, 50), (20, 24))
    windows = plan_windows(mask, NATIVE, CELL, context=4)
    assert [w.left for w in windows] == [14] * len(windows)
    tops = sorted(w.top for w in windows)
    assert tops[0] == 6
    assert tops[-1] + 16 == 54
    assert all(b - a <= 12 for a, b in itertools.pairwise(tops))
    assert windows[0].top in (tops[0], tops[-1])  # both ends see known pixels above or below


def test_windows_on_the_lattice_of_cells():
    windows = plan_windows(np.ones((40, 52), bool), NATIVE, CELL, context=0, step=CELL)
    assert {w.top for w in windows} == {0, 12, 24}
    assert {w.left for w in windows} == {0, 12, 24, 36}
    assert spans(0, 8, 8, 8, 0, 4) == [0]


@pytest.mark.parametrize("seed", range(10))
def test_place_under_finds_the_picture(seed):
    rng = np.random.default_rng(seed)
    by = Extension(*(int(k) for k in rng.integers(0, 9, 4)))
    mask = np.ones((10 + by.top + by.bottom, 14 + by.left + by.right), dtype=bool)
    mask[by.top : by.top + 10, by.left : by.left + 14] = False
    assert place_under((14, 10), mask) == by
    assert place_under((15, 10), mask[:, : 14 - 1]) is None


def test_place_under_is_the_middle_where_the_mask_does_not_say():
    mask = np.ones((20, 20), dtype=bool)
    mask[8:11, 9:12] = False
    assert place_under((10, 10), mask) == Extension(5, 5, 5, 5)
    mask[0, 0] = False
    assert place_under((10, 10), mask) is None


def test_extension_is_read_and_checked():
    assert Extension.parse("left=32, top=16") == Extension(left=32, top=16)
    for wrong in ("left", "left=", "up=3", "left=-1", "left=1,left=2", "left=1.5", "", "left=99999"):
        with pytest.raises(UserError):
            Extension.parse(wrong)


def test_context_must_leave_room():
    mask = hole_of(40, 40, (10, 12), (10, 12))
    with pytest.raises(UserError, match="at most 7"):
        plan_windows(mask, NATIVE, CELL, context=8)
    with pytest.raises(UserError, match="at least 4 pixels"):
        plan_windows(np.ones((3, 40), bool), NATIVE, CELL)


def test_a_constant_error_of_the_tokenizer_vanishes_at_the_border():
    """Drawn pixels that are 20 too dark everywhere: corrected at the border, less and less inside, never overshot.

    Seen to fail with the sign of the correction reversed, and with known pixels taken from inside the hole.
    """
    known = torch.full((3, 32, 32), 120, dtype=torch.uint8)
    sampled = torch.full((3, 32, 32), 100, dtype=torch.uint8)
    mask = hole_of(32, 32, (4, 28), (6, 26))
    known[:, mask] = 7  # must not be seen
    result = blend_seam(known, sampled, mask, reach=4.0)[0].int()
    assert (result[~torch.from_numpy(mask)] == 120).all()
    row = result[16, 6:16]
    assert 112 <= row[0] < 120
    assert (row.diff() <= 0).all()
    assert 100 <= row[-1] <= 104


def test_a_far_reach_is_the_membrane():
    """An error that is linear in the column is harmonic: without decay it is removed exactly."""
    sampled = torch.full((3, 16, 16), 100, dtype=torch.uint8)
    known = sampled + 2 * torch.arange(16, dtype=torch.uint8)
    mask = hole_of(16, 16, (3, 12), (4, 13))
    result = blend_seam(
        known.where(torch.from_numpy(~mask), torch.tensor(0, dtype=torch.uint8)), sampled, mask, reach=1e5
    )
    assert torch.equal(result, known)


def test_nothing_known_or_nothing_missing():
    known, sampled = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(blend_seam(known, sampled, np.ones((8, 8), bool), reach=4.0), sampled)
    assert torch.equal(blend_seam(known, sampled, np.zeros((8, 8), bool), reach=4.0), known)
