"""``signal`` as it is typed."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.commands import pixels, refused, run


def test_signal_map(model: Path, image_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = image_file.read_bytes()
    assert run("signal", image_file, "--model", model, "--class", "cat", "--out", tmp_path / "map.png") == 0
    assert "least signal at row" in capsys.readouterr().out
    assert pixels(tmp_path / "map.png").shape == (256, 520, 3)  # enlarged 16 times, twice, 8 pixels between
    assert run("signal", image_file, "--model", model, "--class", "cat", "--out", tmp_path / "again.png", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert np.array(told["signal"]).shape == (4, 4)
    assert 0 <= np.min(told["signal"]) <= np.max(told["signal"]) <= 1
    assert (tmp_path / "map.png").read_bytes() == (tmp_path / "again.png").read_bytes()
    assert image_file.read_bytes() == before


def test_signal_refuses(model: Path, image_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd, text = tmp_path / "odd.png", tmp_path / "text.png"
    Image.new("RGB", (3, 16)).save(odd)
    text.write_text("no image")
    out = ("--model", model, "--out", tmp_path / "map.png")
    assert "at least 4 pixels" in refused(capsys, run("signal", odd, *out))
    assert "text.png" in refused(capsys, run("signal", text, *out))
    assert "did you mean cat" in refused(capsys, run("signal", image_file, "--class", "cta", *out))
    assert "--level" in refused(capsys, run("signal", image_file, "--level", 1, *out))
    assert "name it X.png" in refused(
        capsys, run("signal", image_file, "--model", model, "--out", tmp_path / "map.bmp")
    )
    assert "name it X.png" in refused(capsys, run("signal", image_file, "--model", model, "--out", tmp_path / "map"))
    assert not (tmp_path / "map.png").exists()
