"""What a page offers, without a browser."""

from pathlib import Path

import pytest

from ggm_image.pipelines.model_folder import NetworkFolder
from ggm_image.web.actions import Actions
from tests.models import tiny_model_folder, tiny_text_model_folder


def test_a_shipped_model_of_text_is_not_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = [NetworkFolder.read(tiny_text_model_folder(tmp_path)), NetworkFolder.read(tiny_model_folder(tmp_path))]
    monkeypatch.setattr("ggm_image.web.actions.shipped_models", lambda: shipped)
    (tmp_path / "other").mkdir()
    first = tiny_model_folder(tmp_path / "other").rename(tmp_path / "first")
    assert Actions(str(first), cache=tmp_path).names == ["first", "model"]
