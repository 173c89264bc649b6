"""Shipped configs: found by name, described by their head."""

from pathlib import Path

import pytest

from ggm_image.errors import UserError
from ggm_image.io.config_schema import load_config
from ggm_image.io.configs import find_config, shipped_configs
from ggm_image.training.config import GeneratorConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize("name", ["cifar10", "cifar10.yaml", "configs/cifar10.yaml", "configs/cifar10"])
def test_by_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any folder, as after `pip install`; a folder of that name does not hide it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10").mkdir()
    assert find_config(name) == CONFIGS / "cifar10.yaml"
    assert load_config(GeneratorConfig, name).network.width == 256


def test_a_file_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cifar10.yaml").write_text("train: {steps: 3}\n")
    assert find_config("cifar10.yaml") == Path("cifar10.yaml")
    assert load_config(GeneratorConfig, "cifar10.yaml").train.steps == 3


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("cifar01", "did you mean cifar10"),
        ("other/cifar10.yaml", "cifar10"),
        ("xyz", "ggm-image configs"),
        ("", "give"),
    ],
)
def test_none(name: str, fix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"config file does not exist .*{fix}"):
        find_config(name)


def test_every_config_says_what_it_is() -> None:
    found = {config.name: config for config in shipped_configs()}
    assert found.keys() == {path.stem for path in CONFIGS.glob("*.yaml")}
    for config in found.values():
        assert config.what, config.name
        assert config.hardware, config.name
        assert "\n" not in config.what + config.size + config.hardware
    assert found["imagenet256"].size == "312 million parameters, 454 GFLOP an image and training step"
    assert found["cifar10"].size.startswith("8.5 million parameters")
    assert found["cifar10"].tried
    assert not found["imagenet256"].tried
    assert found["tokenizer_f16"].command == "train-tokenizer"
    assert found["compare_cifar10"].command == "tools/experiments/compare_objectives.py"
    assert found["compare_text"].command == "tools/experiments/compare_text.py"
    assert found["tokenizer_cifar10"].command == "train-tokenizer"
    assert found["robots64"].command == "train"  # seen to be the script that makes its images
    assert found["tokenizer_robots64"].command == "train-tokenizer"
    assert (found["photos64"].command, found["photos64"].tried) == ("train", False)
    assert (found["tokenizer_photos64"].command, found["tokenizer_photos64"].tried) == ("train-tokenizer", False)
