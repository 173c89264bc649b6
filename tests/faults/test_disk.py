"""A disk that is full or cannot be written to: one line, nothing half-written, and later the command ends well."""

import io
import os
import subprocess
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from ggm_image.cli.main import main
from ggm_image.training.checkpoint import has_checkpoint
from tests.faults.harness import assert_whole, digests
from tests.faults.stories import NAMES, Command, prepare

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.slow,
]
ROOM = {
    "encode": 24_000,
    "encode-shards": 24_000,
    "train": 400_000,
    "train-tokenizer": 1_500_000,
    "sample": 40_000,
    "fid": 16_000,
}
"""Bytes that are left: enough to begin, not to end."""


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Command]:
    return prepare(tmp_path_factory.mktemp("disk"))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 32 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def call(arguments: list[str]) -> tuple[int, str]:
    """Exit code of a command and what it says on stderr."""
    said = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(said):
        code = main(arguments)
    return code, said.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_is_one_line_and_a_clean_resume(
    name: str, commands: dict[str, Command], disk: Path, tmp_path: Path
) -> None:
    """Seen to fail: torch.save ended in a traceback of its own where the disk was full."""
    command = commands[name]
    assert call(command.arguments(tmp_path / "whole"))[0] == 0
    free = os.statvfs(disk)
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(free.f_bavail * free.f_frsize - ROOM[name]))
    out = disk / "out"
    code, said = call(command.arguments(out))
    assert code == 2, said[-2000:]
    last = said.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "No space left" in last or "make room" in last, last
    if out.exists():
        assert_whole(out)
    ballast.unlink()
    resume = ["--resume"] if command.resumable and has_checkpoint(out) else []
    code, said = call([*command.arguments(out), *resume])
    assert code == 0, said[-2000:]
    expected, found = digests(tmp_path / "whole", skip=command.skip), digests(out, skip=command.skip)
    assert found == expected


@pytest.mark.parametrize("name", NAMES)
def test_an_output_that_cannot_be_written_to_is_one_line(name: str, commands: dict[str, Command], disk: Path) -> None:
    """A disk mounted read-only, as root too is refused."""
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    code, said = call(commands[name].arguments(disk / "out"))
    assert code == 2, said[-2000:]
    assert said.strip().splitlines()[-1].startswith("error: ")
    assert not list(disk.iterdir())
