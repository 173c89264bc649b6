"""A model folder is loaded, or refused for what is wrong with it."""

from pathlib import Path

import pytest
import torch

from ggm_image.errors import UserError
from ggm_image.io.config_schema import plain
from ggm_image.network import NetworkConfig
from ggm_image.pipelines.base import rows_per_call
from ggm_image.pipelines.load import load_model
from ggm_image.runtime.devices import choose_device
from ggm_image.tokenizers.registry import load_tokenizer
from tests.models import tiny_model_folder


def test_a_folder_of_images_does_not_hide_a_shipped_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # seen to fail: the README's own commands unpack CIFAR-10 into a folder cifar10
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10-f4-4096").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_model("cifar10").name == "cifar10"


def test_model_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such model"):
        load_model(tmp_path / "none")
    with pytest.raises(UserError, match=r"config\.yaml"):
        load_model(tmp_path)
    folder = tiny_model_folder(tmp_path / "a")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="whole safetensors file"):
        load_model(folder)
    weights.write_bytes(whole)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("width: 32", "width: 64"))
    with pytest.raises(UserError, match="must fit the architecture"):
        load_model(folder)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="NaN"):
        load_model(tiny_model_folder(tmp_path, spoil=lambda state: state["head_bias"].fill_(torch.nan)))


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    # seen to fail without the comparison of hashes in load_model
    folder = tiny_model_folder(tmp_path / "a", seed=0)
    other = tiny_model_folder(tmp_path / "b", seed=1)
    for name in ("config.yaml", "model.safetensors"):
        (tmp_path / "a" / "tokenizer" / name).write_bytes((other.parent / "tokenizer" / name).read_bytes())
    with pytest.raises(UserError, match="was trained with tokenizer"):
        load_model(folder)


def test_network_config_round_trip(tmp_path: Path) -> None:
    folder = tiny_model_folder(tmp_path)
    assert load_model(folder).network.config == NetworkConfig(
        **plain(NetworkConfig(codebook_size=32, classes=3, grid=[4, 4], width=32, depth=2, heads=2))
    )


def test_the_device_is_chosen_as_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_model_folder(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert load_model(folder).device == torch.device("cpu")
    for load in (
        lambda: load_model(folder, device="cuda"),
        lambda: load_tokenizer(tmp_path / "tokenizer", device="cuda"),
    ):
        with pytest.raises(UserError, match=r"device is not available \(cuda, 0 CUDA devices found\)"):
            load()
    with pytest.raises(UserError, match="no such device"):
        load_model(folder, device="gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device() == choose_device("auto") == torch.device("cuda")


@pytest.mark.parametrize(("grid", "rows"), [((8, 8), 128), ((12, 12), 64), ((16, 16), 32), ((24, 24), 32)])
def test_a_gpu_is_given_fewer_rows_of_larger_grids(grid: tuple[int, int], rows: int) -> None:
    assert rows_per_call(torch.device("cuda"), grid[0] * grid[1]) == rows
    assert rows_per_call(torch.device("cpu"), grid[0] * grid[1]) == 16
