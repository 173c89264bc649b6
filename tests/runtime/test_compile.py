"""A machine without a compiler: training continues without one, sampling that asks for one says why not."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ggm_image import load_model
from ggm_image.cli.main import main
from ggm_image.errors import UserError
from ggm_image.network import Transformer
from ggm_image.pipelines import token_model
from ggm_image.runtime.compile import compile_pays


@pytest.mark.slow
def test_a_machine_without_a_compiler(tmp_path: Path) -> None:
    """With torch itself: what it raises there is its own affair, and was a traceback of a hundred lines."""
    code = "from ggm_image.runtime.compile import cannot_compile; print(cannot_compile('cpu'))"
    environment = {**os.environ, "PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    environment.pop("CXX", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "compiler" in done.stdout.lower()
    assert len(done.stdout.splitlines()) == 1


def test_drawing_says_why_not(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_model, "cannot_compile", lambda device: f"no compiler for {device}")
    with pytest.raises(UserError, match=r"cannot be compiled here .no compiler for cpu"):
        load_model(model_folder, compiled=True)


def test_compiled_pictures_are_not_mixed_with_others(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are rounded otherwise. Seen to fail without ``compiled`` in the model's identity."""
    compiled: list[int] = []
    monkeypatch.setattr(token_model, "cannot_compile", lambda device: "")
    monkeypatch.setattr(Transformer, "compile_blocks", lambda network: compiled.append(1))
    draw = [
        "sample",
        "--model",
        str(model_folder),
        "--preset",
        "fast",
        "--device",
        "cpu",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main([*draw, "-n", "1", "--compile"]) == 0
    assert compiled == [1]
    assert main([*draw, "-n", "2"]) == 2
    assert "compiled is True, now None" in capsys.readouterr().err
    assert main([*draw, "-n", "2", "--compile"]) == 0


@pytest.mark.parametrize(
    ("device", "precision", "steps", "minutes", "pays"),
    [
        ("cpu", "bf16-mixed", 40_000, 85.0, True),
        ("cpu", "32-true", 40_000, 85.0, False),
        ("cuda", "32-true", 40_000, None, True),
        ("cuda", "bf16-mixed", 40_000, 9.0, False),
        ("cuda", "bf16-mixed", 999, None, False),
        ("mps", "32-true", 40_000, None, False),
    ],
)
def test_compilation_is_chosen_by_device_precision_and_length(
    device: str, precision: str, steps: int, minutes: float | None, pays: bool
) -> None:
    length: dict[str, Any] = {"steps": steps, "minutes": minutes}
    sample, line = compile_pays("auto", torch.device(device), precision, **length)
    assert sample is pays
    assert line.startswith("compile: yes" if pays else "compile: no")
    for asked in (True, False):
        assert compile_pays(asked, torch.device(device), precision, **length) == (asked, "")
