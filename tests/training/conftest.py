"""A toy cache, its config and a run of them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ggm_image.training.run import train_generator
from tests.training.toy import CONFIG, write_cache


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return write_cache(tmp_path / "tokens")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def run(config: Path, cache: Path, tmp_path: Path) -> Callable[..., Path]:
    def start(name: str, *overrides: str, resume: bool = False, data: Path = cache) -> Path:
        return train_generator(
            config, data, tmp_path / name, overrides=overrides, resume=resume, device="cpu", report=lambda line: None
        )

    return start
