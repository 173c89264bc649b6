"""Resources are found in a checkout and in an installed wheel, and nobody else's folder is taken for ours."""

import subprocess
import sys
from pathlib import Path

import pytest

import ggm_image
from ggm_image.errors import UserError
from ggm_image.io import resources
from ggm_image.io.resources import resource_dir


@pytest.mark.parametrize("kind", ["configs", "tokenizers", "assets"])
def test_checkout(kind: str) -> None:
    assert resource_dir(kind) == Path(__file__).resolve().parents[2] / kind


def test_installed_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "ggm_image"
    (package / "_resources" / "tokenizers").mkdir(parents=True)
    monkeypatch.setattr(resources, "_PACKAGE", package)
    assert resource_dir("tokenizers") == package / "_resources" / "tokenizers"


# Seen to fail without the look for pyproject.toml.
def test_another_package_of_that_name_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "ggm_image"
    package.mkdir(parents=True)
    (package.parent / "tokenizers").mkdir()
    monkeypatch.setattr(resources, "_PACKAGE", package)
    with pytest.raises(UserError, match="install ggm-image again"):
        resource_dir("tokenizers")


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, ggm_image; ggm_image.__version__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_lazy_names() -> None:
    from ggm_image.tokenizers.registry import load_tokenizer

    assert ggm_image.load_tokenizer is load_tokenizer
    assert {"__version__", "load_model", "load_tokenizer"} <= set(dir(ggm_image))
    with pytest.raises(AttributeError, match="load_modle"):
        _ = ggm_image.load_modle
