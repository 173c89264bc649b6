"""Text to a token cache and back: no byte, document or name is lost."""

from pathlib import Path

import numpy as np
import pytest

from ggm_image.data import text
from ggm_image.data.sources.text import Document, TextSource
from ggm_image.data.text import decode_to_file, decode_to_folder, documents, encode_text, verify_text
from ggm_image.data.token_cache.manifest import Manifest
from ggm_image.data.token_cache.reader import TokenCache
from ggm_image.errors import UserError
from ggm_image.tokenizers.text import ByteTokenizer
from tests.models import tiny_bpe

TOKENIZER = ByteTokenizer()


def source_of(*texts: bytes, piece: int = 7) -> TextSource:
    def start():
        for k, content in enumerate(texts):
            pieces = (content[i : i + piece] for i in range(0, len(content), piece))
            yield Document(f"{k}.txt", pieces)

    return TextSource("made", start)


def held(cache: TokenCache) -> list[tuple[str, bytes]]:
    return [(d.name, b"".join(d.pieces)) for d in documents(cache, TOKENIZER)]


@pytest.mark.parametrize("shard_size", [1, 3, 100])
@pytest.mark.parametrize("length", [1, 4, 5, 64])
def test_any_documents_there_and_back(tmp_path: Path, length: int, shard_size: int) -> None:
    """Empty documents at the start, between and at the end; ends inside of rows, and on the ends of shards."""
    rng = np.random.default_rng(0)
    texts = [b"", rng.bytes(12), b"", b"", rng.bytes(15), rng.bytes(1), rng.bytes(32), b""]
    cache = encode_text(source_of(*texts), tmp_path / "t", TOKENIZER, length=length, shard_size=shard_size)
    assert cache is not None
    assert held(cache) == [(f"{k}.txt", content) for k, content in enumerate(texts)]
    assert cache.manifest.grid == (1, length)
    assert cache.manifest.modality == "text"
    assert len(cache) == -(-60 // length)
    verify_text(tmp_path / "t", TOKENIZER, source_of(*texts, piece=3))


@pytest.mark.parametrize(("length", "shard_size"), [(1, 7), (5, 2), (64, 100)])
def test_any_documents_there_and_back_in_larger_pieces(tmp_path: Path, length: int, shard_size: int) -> None:
    """Documents start at tokens, not at bytes, and no token is of two documents."""
    pytest.importorskip("tokenizers")
    tokenizer = tiny_bpe(tmp_path)
    texts = [b"", b"the cat sat", b" on", b"", b" the mat\xff\n", np.random.default_rng(0).bytes(20), b""]
    cache = encode_text(source_of(*texts), tmp_path / "t", tokenizer, length=length, shard_size=shard_size)
    assert cache is not None
    found = [(d.name, b"".join(d.pieces)) for d in documents(cache, tokenizer)]
    assert found == [(f"{k}.txt", content) for k, content in enumerate(texts)]
    source = cache.manifest.source
    assert source["tokens"] == sum(len(tokenizer.codes(text)) for text in texts) < source["bytes"] == 44
    assert len(cache) == cache.manifest.items == -(-source["tokens"] // length)
    assert verify_text(tmp_path / "t", tokenizer, source_of(*texts, piece=3))["bytes"] == 44
    with pytest.raises(UserError, match="tokenizer that made it"):
        list(documents(cache, TOKENIZER))


def test_only_the_last_row_is_filled_up(tmp_path: Path) -> None:
    cache = encode_text(source_of(b"abcde", b"fg"), tmp_path / "t", TOKENIZER, length=4)
    assert cache is not None
    assert TOKENIZER.decode(cache.tokens([0, 1])) == [b"abcd", b"efg\n"]
    assert cache.labels([0, 1]).tolist() == [-1, -1]


def test_an_interrupted_run_resumes_after_its_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, whole = source_of(b"0123456789" * 5), tmp_path / "whole"
    encode_text(source, whole, TOKENIZER, length=5, shard_size=2)
    write, written = text._write, []

    def stops(writer, shard, tokenizer):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(shard.number)
        write(writer, shard, tokenizer)

    monkeypatch.setattr(text, "_write", stops)
    with pytest.raises(KeyboardInterrupt):
        encode_text(source, tmp_path / "t", TOKENIZER, length=5, shard_size=2)
    monkeypatch.setattr(text, "_write", lambda *a: (written.append(a[1].number), write(*a)))
    encode_text(source, tmp_path / "t", TOKENIZER, length=5, shard_size=2)
    assert written == [0, 1, 2, 3, 4]
    assert {p.name: p.read_bytes() for p in whole.iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "t").iterdir()
    }


def test_several_processes_make_the_same_cache(tmp_path: Path) -> None:
    source = source_of(b"0123456789" * 5)
    encode_text(source, tmp_path / "one", TOKENIZER, length=5, shard_size=2)
    assert encode_text(source, tmp_path / "two", TOKENIZER, length=5, shard_size=2, share=(1, 2)) is None
    assert encode_text(source, tmp_path / "two", TOKENIZER, length=5, shard_size=2, share=(0, 2)) is not None
    assert Manifest.read(tmp_path / "one") == Manifest.read(tmp_path / "two")


def test_other_text_is_refused_and_can_be_replaced(tmp_path: Path) -> None:
    encode_text(source_of(b"abc"), tmp_path / "t", TOKENIZER)
    with pytest.raises(UserError, match="another request.*sha256"):
        encode_text(source_of(b"abd"), tmp_path / "t", TOKENIZER)
    with pytest.raises(UserError, match="text is not what was encoded"):
        verify_text(tmp_path / "t", TOKENIZER, source_of(b"abd"))
    cache = encode_text(source_of(b"abd"), tmp_path / "t", TOKENIZER, overwrite=True)
    assert cache is not None
    assert held(cache) == [("0.txt", b"abd")]


def test_text_that_changes_while_it_is_read(tmp_path: Path) -> None:
    reads = iter([b"abc", b"abcdef"])

    def start():
        yield Document("a.txt", iter([next(reads)]))

    with pytest.raises(UserError, match="has changed while it was read"):
        encode_text(TextSource("made", start), tmp_path / "t", TOKENIZER, length=3)
    assert not (tmp_path / "t").exists()


def test_text_that_changes_to_other_text_of_the_same_length(tmp_path: Path) -> None:
    reads = iter([b"abcabc", b"abdabc"])

    def start():
        yield Document("a.txt", iter([next(reads)]))

    with pytest.raises(UserError, match="has changed while it was read"):
        encode_text(TextSource("made", start), tmp_path / "t", TOKENIZER, length=3, shard_size=1)
    assert not (tmp_path / "t").exists()


def test_no_text(tmp_path: Path) -> None:
    for source in (source_of(), source_of(b"", b"")):
        with pytest.raises(UserError, match="must hold text"):
            encode_text(source, tmp_path / "t", TOKENIZER)
    assert not (tmp_path / "t").exists()


def test_a_damaged_cache_is_found(tmp_path: Path) -> None:
    encode_text(source_of(b"abc", b"def"), tmp_path / "t", TOKENIZER, length=3)
    shard = tmp_path / "t" / "tokens-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match="damaged"):
        verify_text(tmp_path / "t", TOKENIZER, None)


def test_decoded_to_files(tmp_path: Path) -> None:
    cache = encode_text(source_of(b"abc\xff", b"", b"def"), tmp_path / "t", TOKENIZER, length=5)
    assert cache is not None
    assert decode_to_file(cache, tmp_path / "all.txt", TOKENIZER) == 3
    assert (tmp_path / "all.txt").read_bytes() == b"abc\xffdef"
    assert decode_to_folder(cache, tmp_path / "out", TOKENIZER) == 3
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == {
        "0.txt": b"abc\xff",
        "1.txt": b"",
        "2.txt": b"def",
    }


def test_names_that_come_twice_and_names_that_lead_out(tmp_path: Path) -> None:
    def named(*names: str) -> TextSource:
        return TextSource("made", lambda: (Document(name, iter([name.encode()])) for name in names))

    cache = encode_text(named("a.txt", "a.txt", "A.txt"), tmp_path / "t", TOKENIZER)
    assert cache is not None
    decode_to_folder(cache, tmp_path / "out", TOKENIZER)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["A-3.txt", "a-2.txt", "a.txt"]
    cache = encode_text(named("../a.txt"), tmp_path / "u", TOKENIZER)
    assert cache is not None
    with pytest.raises(UserError, match="safe name"):
        decode_to_folder(cache, tmp_path / "out2", TOKENIZER)
    assert not (tmp_path / "out2").exists()
