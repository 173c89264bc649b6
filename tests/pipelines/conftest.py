"""A small model."""

import pytest

from ggm_image.pipelines.image import Model
from ggm_image.pipelines.load import load_model
from tests.models import tiny_model_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(tiny_model_folder(tmp_path_factory.mktemp("model")))
