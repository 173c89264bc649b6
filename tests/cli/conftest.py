"""A small model, an image of its size and a mask."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Path:
    return model_folder


@pytest.fixture
def image_file(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / "in.png")
    return tmp_path / "in.png"


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    hole = np.zeros((16, 16), dtype=np.uint8)
    hole[5:11, 2:9] = 255
    Image.fromarray(hole).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"
