"""Run a command as it is typed, and look at what it says and writes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ggm_image.cli.main import main


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def refused(capsys: pytest.CaptureFixture[str], code: int, *parts: str) -> str:
    """What a refused command says: one line of an error, with how to fix it and all ``parts``."""
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert "; " in captured.err
    for part in parts:
        assert part in captured.err
    return captured.err


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))
