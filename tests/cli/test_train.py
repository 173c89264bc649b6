"""The `train` commands' manners; what they do is tested in tests/training."""

from pathlib import Path

import pytest

from ggm_image.cli.main import main


def test_train_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.training.toy import CONFIG, write_cache  # type: ignore[import-not-found]

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


def test_a_config_of_the_user_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A config kept in the folder of the run; a model's folder named by mistake. A killed run may start again."""
    from tests.training.toy import CONFIG, write_cache  # type: ignore[import-not-found]

    out = tmp_path / "run"
    out.mkdir()
    (out / "config.yaml").write_text(f"# my notes\n{CONFIG}")
    before = (out / "config.yaml").read_bytes()
    cache = write_cache(tmp_path / "tokens")
    common = ["--data", str(cache), "--out", str(out), "train.steps=2", "--device", "cpu"]
    assert main(["train", str(out / "config.yaml"), *common]) == 2
    error = capsys.readouterr().err
    assert "config.yaml exists and was not written by this command" in error
    assert "add --overwrite" in error
    assert (out / "config.yaml").read_bytes() == before
    assert [path.name for path in out.iterdir()] == ["config.yaml"]
    (tmp_path / "c.yaml").write_bytes(before)
    assert main(["train", str(tmp_path / "c.yaml"), *common, "--overwrite"]) == 0
    (out / "checkpoint.pt").unlink()
    (out / "log.csv").unlink()
    assert main(["train", str(out / "config.yaml"), *common]) == 0


def test_plots_of_others_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.csv").write_text("step,loss\n10,3.5\n20,3.0\n")
    photo = tmp_path / "photo.png"
    photo.write_bytes(b"mine")
    assert main(["plot", str(tmp_path), "--out", str(photo)]) == 2
    assert "was not written by this command" in capsys.readouterr().err
    assert photo.read_bytes() == b"mine"
    for _ in range(2):
        assert main(["plot", str(tmp_path), "--out", str(tmp_path / "new.png")]) == 0
    assert main(["plot", str(tmp_path), "--out", str(photo), "--overwrite"]) == 0
