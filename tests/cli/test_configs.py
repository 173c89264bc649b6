"""``configs``: a list, and a copy that is written over nobody's file."""

import json
from pathlib import Path

import pytest

from ggm_image.cli.main import main

CIFAR10 = (Path(__file__).resolve().parents[2] / "configs" / "cifar10.yaml").read_bytes()


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    shown = capsys.readouterr().out
    assert "\nimagenet256  (not run: a starting point)\n" in shown
    assert "  hardware  one H100, 2 minutes" in shown
    assert main(["configs", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert {"what", "size", "hardware", "command", "path"} <= rows["cifar10"].keys()


def test_copy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.yaml"
    assert main(["configs", "cifar10", str(mine)]) == 0
    assert main(["configs", "cifar10", str(tmp_path)]) == 0
    assert mine.read_bytes() == (tmp_path / "cifar10.yaml").read_bytes() == CIFAR10
    assert main(["configs", "cifar10", str(mine)]) == 0  # nothing is lost
    mine.write_text("steps: 5\n")
    capsys.readouterr()
    assert main(["configs", "cifar10", str(mine)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {mine} exists and was not written by this command")
    assert "add --overwrite" in error
    assert mine.read_text() == "steps: 5\n"
    assert main(["configs", "cifar10", str(mine), "--overwrite"]) == 0
    assert mine.read_bytes() == CIFAR10


def test_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "cifar01", str(tmp_path / "a.yaml")]) == 2
    assert "did you mean cifar10" in capsys.readouterr().err
    assert main(["configs", "cifar10"]) == 2
    assert "OUT is missing" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
