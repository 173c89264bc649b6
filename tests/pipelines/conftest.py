"""A small model."""

from pathlib import Path

import pytest

from ggm_image.pipelines.image import Model
from ggm_image.pipelines.load import load_model


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Model:
    return load_model(model_folder)
