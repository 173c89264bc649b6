"""Files and folders are whole or not there."""

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ggm_image.errors import UserError
from ggm_image.io.files import (
    atomic_folder,
    atomic_path,
    create_json,
    held,
    remove_temporaries,
    sha256_file,
    write_json,
    write_text,
    write_together,
)
from ggm_image.runtime.progress import progress


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.png"
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"one")
        assert temporary.suffix == ".png"
        assert not path.exists()
    assert path.read_bytes() == b"one"
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


# Seen to fail with a plain open(path, "w") in place of the temporary name.
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("new")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("there", [True, False])
def test_a_file_that_others_write_too(there: bool, tmp_path: Path) -> None:
    """Another process tidies up while we write; it has written the file, or not."""
    path, turns = tmp_path / "a.png", []

    def write(temporary: Path) -> None:
        temporary.write_bytes(b"same")
        turns.append(temporary)
        if len(turns) == 1:
            remove_temporaries(tmp_path)
            if there:
                path.write_bytes(b"same")

    write_together(path, write)
    assert path.read_bytes() == b"same"
    assert len(turns) == (1 if there else 2)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "a").write_text("x")
        assert not any((tmp_path / "out").iterdir())
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "x"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_no_folder(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with atomic_folder(tmp_path / "out") as temporary:
            (temporary / "a").write_text("x")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_full_folder_or_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("mine")
    for path in (tmp_path, tmp_path / "a"):
        with pytest.raises(UserError, match="new or empty"), atomic_folder(path):
            pass
    assert (tmp_path / "a").read_text() == "mine"


def test_json_and_hash(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "Fréchet", "n": [1, 2.5]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"name": "Fréchet", "n": [1, 2.5]}
    data = os.urandom(3_000_000)
    (tmp_path / "b").write_bytes(data)
    assert sha256_file(tmp_path / "b") == hashlib.sha256(data).hexdigest()


def test_no_bar_when_piped(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    assert list(progress(range(3), total=3, unit="x", label="y")) == [0, 1, 2]
    assert stream.getvalue() == ""
    stream.isatty = lambda: True  # type: ignore[method-assign]
    assert list(progress(range(3), total=3, unit="x", label="y")) == [0, 1, 2]
    assert "y" in stream.getvalue()


def test_the_error_is_one_line() -> None:
    error = UserError("tokens must lie in [0, 4)", "got\n max 9", "encode again")
    assert str(error) == "tokens must lie in [0, 4) (got max 9); encode again"
    assert isinstance(error, ValueError)


@pytest.mark.parametrize("links", [True, False])
def test_of_several_processes_one_makes_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    assert create_json(tmp_path / "a.json", {"by": 1})
    assert not create_json(tmp_path / "a.json", {"by": 2})
    assert json.loads((tmp_path / "a.json").read_text()) == {"by": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_is_held_by_one_process_until_it_ends(tmp_path: Path) -> None:
    """Seen to fail with nothing locked."""
    script = (
        "import sys, time\nfrom ggm_image.io.files import held\n"
        "with held(sys.argv[1]): print(flush=True), time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        try:
            with pytest.raises(UserError, match="another process is at work"), held(tmp_path):
                pass
        finally:
            other.kill()
    with held(tmp_path), pytest.raises(UserError, match="another process"), held(tmp_path):
        pass
    with held(tmp_path):
        assert not list(tmp_path.iterdir())


def test_a_file_is_readable_by_those_whom_the_umask_allows(tmp_path: Path) -> None:
    """Seen to fail with what safetensors 0.8 writes: files for their owner alone."""
    before = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "weights") as temporary:
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600))
    finally:
        os.umask(before)
    assert (tmp_path / "weights").stat().st_mode & 0o777 == 0o640
