"""Training curves: what is read from a log, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ggm_image.cli.main import main
from ggm_image.training import plots
from ggm_image.training.plots import plot_run, read_log
from ggm_image.training.run import train_generator
from ggm_image.training.vqgan.run import train_tokenizer
from tests.training import toy
from tests.training.vqgan import test_run as test_tokenizer

LOG = """step,loss,gradient_norm,learning_rate,minutes,nll,nll_level_0.5,nll_masked_1
10,3.5,1.0,0.001,0.1,,,
20,3.25,0.9,0.0009,0.2,,,
20,,,,,5.5,5.25,6.0
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.csv").write_text(LOG)
    return tmp_path / "run"


def test_every_column_with_its_own_steps(run: Path) -> None:
    """Empty cells are no points. Seen to fail with them read as 0."""
    series = read_log(run)
    assert series["loss"] == ([10, 20], [3.5, 3.25])
    assert series["nll"] == ([20], [5.5])
    assert set(series) == {"loss", "gradient_norm", "learning_rate", "nll", "nll_level_0.5", "nll_masked_1"}


def test_every_run_ends_with_its_curves(
    class_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sampled: list[Path] = []
    monkeypatch.setattr(plots, "plot_run", lambda folder: sampled.append(folder))
    (tmp_path / "generator.yaml").write_text(toy.CONFIG)
    tokens = toy.write_cache(tmp_path / "tokens")
    train_generator(tmp_path / "generator.yaml", tokens, tmp_path / "a", overrides=["train.steps=1"], device="cpu")
    (tmp_path / "tokenizer.yaml").write_text(test_tokenizer.CONFIG)
    train_tokenizer(tmp_path / "tokenizer.yaml", class_folder, tmp_path / "b", overrides=["train.steps=1"])
    assert sampled == [tmp_path / "a", tmp_path / "b"]


def test_the_picture(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two rows of panels with ink in every one; on demand, where it is asked for."""
    assert main(["plot", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "curves.png")
    pixels = np.asarray(Image.open(run / "curves.png").convert("L"))
    height, width = pixels.shape
    for row in range(2):
        for column in range(3):
            panel = pixels[row * height // 2 : (row + 1) * height // 2, column * width // 3 : (column + 1) * width // 3]
            assert (panel < 128).mean() > 0.002
    assert plot_run(run, tmp_path / "other.png") == tmp_path / "other.png"
    assert (tmp_path / "other.png").is_file()


@pytest.mark.parametrize(
    ("log", "message"),
    [
        (None, "no "),
        ("step,loss\n", "logged nothing yet"),
        ("step,loss\n10,3.5\n20,what\n", "must be that of a run"),
        ("a,b\n1,2\n", "must be that of a run"),
    ],
)
def test_what_is_no_log_is_one_line(
    log: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if log is not None:
        (tmp_path / "log.csv").write_text(log)
    assert main(["plot", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "curves.png").exists()
    assert main(["plot", str(tmp_path), "--out", "curves.pdf"]) == 2
