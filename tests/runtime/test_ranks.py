"""Which of how many processes this is."""

import pytest

from ggm_image.errors import UserError
from ggm_image.runtime.ranks import rank_and_world_size


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


# Seen to fail with `<=` in place of `<` (a process "4/4" that finds nothing to do).
def test_who_is_who(monkeypatch: pytest.MonkeyPatch) -> None:
    assert rank_and_world_size() == (0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert rank_and_world_size() == (2, 3)
    assert rank_and_world_size("0/8") == (0, 8)  # what is asked for goes before the environment


@pytest.mark.parametrize("asked", ["", "1", "4/4", "5/4", "-1/4", "1/0", "a/b", "1/4/4", " 1/4", "1.0/4"])
def test_what_is_no_share(asked: str) -> None:
    with pytest.raises(UserError, match=r"i from 0 to n - 1"):
        rank_and_world_size(asked)


@pytest.mark.parametrize(
    ("rank", "world_size"), [("", "2"), ("1", ""), ("2", "2"), ("x", "2"), ("-1", "2"), ("0", "0")]
)
def test_half_an_environment(rank: str, world_size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world_size)
    with pytest.raises(UserError, match="WORLD_SIZE"):
        rank_and_world_size()
