"""Finding a model folder."""

from pathlib import Path

import pytest

from ggm_image.errors import UserError
from ggm_image.io.resources import resource_dir
from ggm_image.pipelines.model_folder import find_model


def test_a_run_names_its_model(tmp_path: Path) -> None:
    """Seen to fail where a run's own config.yaml is read as that of a model."""
    (tmp_path / "config.yaml").write_bytes((resource_dir("configs") / "cifar10.yaml").read_bytes())
    with pytest.raises(UserError, match="a training run is not a model .*; finish the run; it writes .*/model"):
        find_model(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.yaml").touch()
    with pytest.raises(UserError, match="a training run is not a model .*; give .*/model"):
        find_model(tmp_path)
