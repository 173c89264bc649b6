"""Commands and library where stdout or stderr is closed or None."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ggm_image.cli.main import main
from ggm_image.runtime.progress import progress, progress_bar
from ggm_image.runtime.streams import is_terminal, say, standard_streams


class Closed(io.StringIO):
    def __init__(self) -> None:
        super().__init__()
        self.close()


class Broken(io.StringIO):
    """A stream whose reader has gone."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    def isatty(self) -> bool:
        raise OSError(5, "Input/output error")


STREAMS = [None, Closed(), Broken()]


@pytest.mark.parametrize("stream", STREAMS)
def test_messages_are_dropped(
    stream: io.StringIO | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seen to fail with print(..., file=sys.stderr), which writes to stdout where stderr is None."""
    monkeypatch.setattr("sys.stderr", stream)
    say("what nobody reads")
    assert not is_terminal(sys.stderr)
    assert list(progress(range(3), total=3, unit="x", label="y")) == [0, 1, 2]
    with progress_bar(total=3, unit="x", label="y") as advance:
        advance(1)
    assert capsys.readouterr().out == ""


def test_messages_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    say("a line")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "a line\n")


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("stream", [None, Closed()])
def test_a_command_in_a_process_without_streams(
    stream: io.StringIO | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"sys.{name}", stream)
    assert main(["models"]) == 0
    assert main(["sample", "--class"]) == 2
    assert getattr(sys, name) is stream


def test_open_streams_stay() -> None:
    before = sys.stdout, sys.stderr
    with standard_streams():
        assert (sys.stdout, sys.stderr) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="descriptors are closed by a POSIX shell")
@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(("arguments", "code"), [("configs cifar10 out.yaml", 0), ("sample --out x.bmp", 2)])
def test_closed_descriptors(closed: str, arguments: str, code: int, tmp_path: Path) -> None:
    """What is written goes to its file and to no other; what is open gets its lines."""
    command = f"'{sys.executable}' -m ggm_image {arguments} {closed}"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done
    assert "Traceback" not in done.stdout + done.stderr
    if code == 0:
        assert (tmp_path / "out.yaml").read_bytes() == (root / "configs" / "cifar10.yaml").read_bytes()
        assert done.stdout == ("" if ">&- " in f"{closed} " and closed != "2>&-" else "out.yaml\n")
    elif "2>&-" not in closed:
        assert done.stderr.startswith("error: --out must be")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="descriptors are closed by a POSIX shell")
def test_a_closed_descriptor_is_not_given_to_a_file(tmp_path: Path) -> None:
    """Seen to fail without the null device: a C library's message would be written into the first file opened."""
    code = (
        "import os, sys\nfrom ggm_image.runtime.streams import standard_streams\n"
        "with standard_streams():\n"
        "    with open('mine.txt', 'w') as file:\n"
        "        os.write(2, b'a message of a C library')\n"
        "        print('out', flush=True)\n"
        "        file.write(str(file.fileno() > 2))\n"
    )
    root = Path(__file__).resolve().parents[2]
    command = f"'{sys.executable}' -c \"$CODE\" >&- 2>&- <&-"
    environment = {**os.environ, "PYTHONPATH": str(root), "CODE": code}
    assert subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment, check=False).returncode == 0
    assert (tmp_path / "mine.txt").read_text() == "True"
