"""Settings, and what is a seed: integers, and nothing that only looks like one."""

import numpy as np
import pytest

from ggm_image.cli.main import main
from ggm_image.errors import UserError
from ggm_image.sampler.settings import check_seed


@pytest.mark.parametrize("seed", [3, np.int64(3), np.uint8(3)])
def test_integers(seed: object) -> None:
    assert check_seed(seed) == 3
    assert type(check_seed(seed)) is int


@pytest.mark.parametrize("seed", [True, np.True_, 1.5, 2.0, "2", None, np.float32(1)])
def test_others(seed: object) -> None:
    with pytest.raises(UserError, match="a seed must be a whole number"):
        check_seed(seed)


@pytest.mark.parametrize("text", ["1.5", "True", "-1", "1e3", "9" * 30, ""])
@pytest.mark.parametrize("command", [("sample",), ("encode", "a", "b"), ("train", "c", "--data", "d", "--out", "e")])
def test_on_the_command_line(command: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, f"--seed={text}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: a seed must be ")
    assert error.count("\n") == 1
