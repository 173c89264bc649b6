"""`train-perceptual`: a perceptual loss from class folders, as `train-tokenizer` takes it."""

from pathlib import Path

import pytest
import torch

from ggm_image.cli.main import main
from ggm_image.training.vqgan.perceptual import load_perceptual


def test_a_perceptual_loss_from_class_folders(
    class_folder: Path, flat_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It comes with the package; a script beside a checkout was all there was."""
    out = tmp_path / "loss.safetensors"
    options = ["--image-size", "8", "--minutes", "0.002", "--batch-size", "4", "--device", "cpu"]
    assert main(["train-perceptual", str(class_folder), str(out), *options]) == 0
    loss = load_perceptual(str(out))
    assert loss is not None
    a, b = torch.rand(2, 1, 3, 8, 8)
    assert float(loss(a, a)) == 0
    assert float(loss(a, b)) > 0
    capsys.readouterr()
    assert main(["train-perceptual", str(flat_folder), str(tmp_path / "no.safetensors"), *options]) == 2
    assert "needs class folders" in capsys.readouterr().err
    assert main(["train-perceptual", str(class_folder), str(tmp_path / "no.pt"), *options]) == 2
    assert "name it no.safetensors" in capsys.readouterr().err
    assert not list(tmp_path.glob("no.*"))
