"""The `train` commands' manners; what they do is tested in tests/training."""

from pathlib import Path

import pytest

from ggm_image.cli.main import main


def test_train_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.training.test_generator import CONFIG, write_cache  # type: ignore[import-not-found]

    (tmp_path / "c.yaml").write_text(CONFIG)
    cache = write_cache(tmp_path / "tokens")
    arguments = ["train", str(tmp_path / "c.yaml"), "--data", str(cache), "--out", str(tmp_path / "run")]
    assert main([*arguments, "train.steps=2", "--device", "cpu", "--seed", "3"]) == 0
    assert "seed: 3" in (tmp_path / "run" / "config.yaml").read_text()
    assert (tmp_path / "run" / "curves.png").is_file()
    assert str(tmp_path / "run" / "model") in capsys.readouterr().out
    assert main([*arguments, "train.steps=2"]) == 2
    assert "add --resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.yaml", "--data", "x", "--out", "y"], "config file does not exist"),
        (["none.yaml", "--data", "x"], "missing"),
        (["none.yaml", "--data", "x", "--out", "y", "--device", "gpu"], "device"),
    ],
)
@pytest.mark.parametrize("command", ["train", "train-tokenizer"])
def test_bad_input_is_one_line(
    command: str,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([command, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not any(tmp_path.iterdir())
