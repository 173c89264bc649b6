"""Patches of photographs: their places, sides and pixels, and that no photograph is on both sides."""

import importlib
import math
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ggm_image.errors import UserError
from ggm_image.image.io import open_image

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def cutter(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(TOOLS / "experiments")
    module = importlib.import_module("cut_patches")
    monkeypatch.delitem(sys.modules, "cut_patches")
    return module


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six photographs, each of one grey value and of another size; a small one; and a file that is no image."""
    folder = tmp_path / "photos"
    (folder / "2026" / "May").mkdir(parents=True)
    for k in range(6):
        place = folder / ("2026/May" if k % 2 else "2026") / f"{k}.png"
        Image.new("RGB", (40 + k, 24 + 3 * k), (20 * k, 20 * k, 20 * k)).save(place)
    Image.new("RGB", (100, 15)).save(folder / "thin.png")
    (folder / "broken.jpg").write_text("no image")
    (folder / "notes.txt").write_text("no image")
    return folder


# Seen to fail with the side drawn evenly on a linear scale, and with places that leave out the last row.
def test_squares_lie_inside_and_cover_all_scales(cutter: ModuleType) -> None:
    found = list(cutter.squares(1000, 640, 10, 3000, "seed"))
    assert found == list(cutter.squares(1000, 640, 10, 3000, "seed"))
    assert found != list(cutter.squares(1000, 640, 10, 3000, "other"))
    assert all(t in range(1001 - side) and x in range(641 - side) and side >= 10 for t, x, side in found)
    sides = np.array([math.log2(side / 10) for _, _, side in found])
    counts = np.histogram(sides, 6, (0, 6))[0]  # 10, 20, ... 640
    assert (abs(counts - 500) < 40).all(), counts
    small = [(t, x) for t, x, side in found if side < 20]
    for axis, room in ((0, 990), (1, 630)):
        places = np.array([place[axis] for place in small])
        assert places.min() < 0.03 * room
        assert places.max() > 0.97 * room
    assert list(cutter.squares(8, 8, 8, 2, "")) == [(0, 0, 8)] * 2


def test_each_photograph_is_on_one_side_only(cutter: ModuleType, photos: Path, tmp_path: Path) -> None:
    options = [str(photos), str(tmp_path / "out"), "--size", "16", "--patches", "5", "--val", "0.3"]
    result = CliRunner().invoke(cutter.main, options)
    assert result.exit_code == 0, result.output
    assert "broken.jpg" in result.output
    assert "thin.png has 100 x 15 pixels" in result.output
    greys: dict[str, set[int]] = {}
    for split in ("train", "val"):
        paths = sorted((tmp_path / "out" / split).iterdir())
        images = [open_image(path) for path in paths]
        assert all(image.shape == (3, 16, 16) and int(image.min()) == int(image.max()) for image in images)
        greys[split] = {int(image.min()) for image in images}
        assert len(images) == 5 * len(greys[split])
    assert not greys["train"] & greys["val"]
    assert greys["train"] | greys["val"] == {0, 20, 40, 60, 80, 100}
    assert f"{5 * len(greys['train'])} patches for training" in result.output


def test_validation_keeps_at_least_one_and_not_all(cutter: ModuleType) -> None:
    names = [f"{k}.jpg" for k in range(20)]
    assert [len(cutter.validation_photos(names, share, 0)) for share in (0.0, 0.25, 1.0)] == [1, 5, 19]
    assert cutter.validation_photos(names, 0.25, 0) != cutter.validation_photos(names, 0.25, 1)


def test_too_few_photographs(cutter: ModuleType, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "one.png")
    with pytest.raises(UserError, match="at least two photographs"):
        cutter.find_photos(tmp_path)
    Image.new("RGB", (9, 9)).save(tmp_path / "two.png")
    with pytest.raises(UserError, match="too few photographs can be used"):
        cutter.main.callback(tmp_path, tmp_path / "out", 16, 2, 0.5, 0)
    assert not (tmp_path / "out").exists()
