"""``encode``, ``decode`` and ``--verify`` of text."""

import json
from pathlib import Path

import pytest

from tests.cli.commands import run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_bytes(b"It was the best of times\xff\n" * 20)
    (tmp_path / "books" / "b.txt").write_bytes(b"")
    (tmp_path / "books" / "c.txt").write_bytes(b"Call me Ishmael.")
    return tmp_path / "books"


def test_there_and_back(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = tmp_path / "tokens"
    assert run("encode", folder, tokens, "--tokenizer", "bytes", "--length", 16, "--shard-size", 10) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out == f"3 documents, 536 bytes, as 34 rows of 16 tokens: {tokens}\n"
    assert run("encode", folder, tokens, "--verify") == 0
    assert "3 documents, 536 bytes in 4 shards" in capsys.readouterr().out
    assert run("decode", tokens, tmp_path / "out", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(tmp_path / "out"), "count": 3}
    for path in folder.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    assert run("decode", tokens, tmp_path / "all.txt") == 0
    assert "without a separator" in capsys.readouterr().err
    assert (tmp_path / "all.txt").read_bytes() == b"".join(p.read_bytes() for p in sorted(folder.iterdir()))


def test_changed_text_and_files_of_others(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = tmp_path / "tokens"
    assert run("encode", folder, tokens, "--tokenizer", "bytes") == 0
    (folder / "c.txt").write_bytes(b"Call me Ishmaem.")
    (tmp_path / "mine.txt").write_bytes(b"mine")
    capsys.readouterr()
    for command, part in [
        (("encode", folder, tokens, "--verify"), "text is not what was encoded"),
        (("encode", folder, tokens, "--tokenizer", "bytes"), "another request"),
        (("decode", tokens, tmp_path / "mine.txt"), "was not written by this command"),
        (("decode", tokens, folder), "must be a new or an empty folder"),
    ]:
        assert run(*command) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert part in captured.err
        assert captured.err.count("\n") == 1
    assert (tmp_path / "mine.txt").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--tokenizer", "bytes", "--flip"), "--flip belongs to images"),
        (("--tokenizer", "bytes", "--shifts", 2), "--shifts belongs to images"),
        (("--tokenizer", "bytes", "--image-size", 8), "--image-size belongs to images"),
        (("--tokenizer", "robots64-f8-2048", "--length", 8), "--length belongs to text"),
        (("--tokenizer", "robots64-f8-2048", "--text-key", "t"), "--text-key belongs to text"),
    ],
)
def test_options_of_the_other_kind(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[object, ...], part: str
) -> None:
    assert run("encode", folder, tmp_path / "tokens", *arguments) == 2
    assert part in capsys.readouterr().err
    assert not (tmp_path / "tokens").exists()


def test_a_tokenizer_of_text_is_trained_and_used(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tokenizers")
    made, tokens = tmp_path / "run", tmp_path / "tokens"
    assert run("train-tokenizer", "bpe-270", "--data", folder, "--out", made) == 0
    assert capsys.readouterr().out == f"tokenizer: {made / 'tokenizer'} (bpe-270)\n"
    assert run("encode", folder, tokens, "--tokenizer", made / "tokenizer", "--length", 16) == 0
    assert "3 documents, 536 bytes, as " in capsys.readouterr().out
    assert run("encode", folder, tokens, "--verify") == 0
    assert run("decode", tokens, tmp_path / "all.txt") == 0
    assert (tmp_path / "all.txt").read_bytes() == b"".join(p.read_bytes() for p in sorted(folder.iterdir()))
    capsys.readouterr()
    for command, part in [
        (("train-tokenizer", "bpe-270", "--data", folder, "--out", made), "holds a tokenizer already"),
        (("train-tokenizer", "bpe-270", "--data", folder, "--out", made, "--force"), "--force belongs to images"),
        (("train-tokenizer", "bpe-9", "--data", folder, "--out", tmp_path / "new"), "257 to 65,536 codes"),
        (("train-tokenizer", "bpe-300", "--data", folder / "b.txt", "--out", tmp_path / "new"), "must hold text"),
        (("train-tokenizer", "cifar10", "--data", folder, "--out", made, "--text-key", "a"), "belongs to text"),
    ]:
        assert run(*command) == 2
        error = capsys.readouterr().err
        assert part in error
        assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()
    assert run("train-tokenizer", "bpe-4000", "--data", folder, "--out", made, "--overwrite") == 0
    assert "give no more than" in capsys.readouterr().err
