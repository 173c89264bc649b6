"""Documents of files, folders, archives and JSON lines, in order and byte for byte."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
from pathlib import Path

import pytest

import ggm_image.data.sources.text as text
from ggm_image.data.sources.text import open_text
from ggm_image.errors import UserError


def read(source: Path, **options: str) -> list[tuple[str, bytes]]:
    return [(d.name, b"".join(d.pieces)) for d in open_text(source, **options).documents()]


@pytest.mark.parametrize(("suffix", "pack"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)])
def test_a_file_of_any_bytes(tmp_path: Path, suffix: str, pack) -> None:
    content = bytes(range(256)) * 3 + b"\xff\x00\r\n"
    path = tmp_path / f"book.txt{suffix}"
    path.write_bytes(pack(content))
    assert read(path) == [("book.txt", content)]
    assert read(path) == [("book.txt", content)]  # a second time


def test_a_folder_in_order_with_empty_files_and_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("b.txt", "a/z.txt", "a/y.txt", ".hidden.txt", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "empty.txt").touch()
    (tmp_path / "c.txt.bz2").write_bytes(bz2.compress(b"packed"))
    names = ["a/y.txt", "a/z.txt", "b.txt", "c.txt", "empty.txt"]
    assert read(tmp_path) == list(zip(names, [b"a/y.txt", b"a/z.txt", b"b.txt", b"packed", b""], strict=True))
    assert capsys.readouterr().err.count("left out 2 files") == 1


def pack_tar(path: Path, files: list[tuple[str, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_archives_in_their_own_order(tmp_path: Path) -> None:
    files = [("z.txt", b"last first"), ("pic.png", b"no text"), ("a.txt.gz", gzip.compress(b"packed"))]
    for mode, name in (("w", "t.tar"), ("w:xz", "t.tar.xz")):
        path = pack_tar(tmp_path / name, files, mode)
        assert read(path) == [("z.txt", b"last first"), ("a.txt", b"packed")]


def test_json_lines(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "eins"}), "", json.dumps({"text": "zw\u00f6i", "id": 2})]
    (tmp_path / "set.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    expected = [("set.jsonl/000001.txt", b"eins"), ("set.jsonl/000003.txt", "zwöi".encode())]
    assert read(tmp_path / "set.jsonl") == expected
    (tmp_path / "other.jsonl.gz").write_bytes(gzip.compress(b'{"body": "x"}'))
    assert read(tmp_path / "other.jsonl.gz", text_key="body") == [("other.jsonl/000001.txt", b"x")]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b'{"body": 1}', "must have the field 'text'.*line 1 has body"),
        (b'{"text": 1}', "must be a string"),
        (b"[1]", "must have the field"),
        (b"{", "must be JSON"),
        (b'{"text": "' + b"x" * 100 + b'"}', "at most 64 bytes"),
    ],
)
def test_json_lines_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes, what: str) -> None:
    monkeypatch.setattr(text, "LONGEST_LINE", 64)
    (tmp_path / "set.jsonl").write_bytes(line)
    with pytest.raises(UserError, match=what):
        read(tmp_path / "set.jsonl")


def test_one_endless_line_comes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "PIECE", 100)
    (tmp_path / "line.txt").write_bytes(b"x" * 1001)
    sizes = [len(piece) for d in open_text(tmp_path / "line.txt").documents() for piece in d.pieces]
    assert (max(sizes), sum(sizes)) == (100, 1001)


def test_damaged_files(tmp_path: Path) -> None:
    whole = lzma.compress(bytes(range(256)) * 100)
    (tmp_path / "cut.txt.xz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="damaged or cut off.*cut.txt.xz"):
        read(tmp_path / "cut.txt.xz")
    tar = pack_tar(tmp_path / "t.tar", [("a.txt", b"a" * 2000), ("b.txt", b"b")]).read_bytes()
    for end in (1000, 512 * 5):  # within a member, and between two
        (tmp_path / "cut.tar").write_bytes(tar[:end])
        with pytest.raises(UserError, match="damaged or cut off"):
            read(tmp_path / "cut.tar")


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_text(tmp_path / "none.txt")
    with pytest.raises(UserError, match="must hold files of text"):
        open_text(tmp_path)
    with pytest.raises(UserError, match="archive must hold"):
        read(pack_tar(tmp_path / "t.tar", [("a.png", b"a")]))
