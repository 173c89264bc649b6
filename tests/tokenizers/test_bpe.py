"""Byte-level BPE: any bytes there and back, from any tokenizer.json that knows all bytes."""

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ggm_image
from ggm_image.errors import UserError
from ggm_image.tokenizers.bpe import BPETokenizer, blocks, byte_alphabet, train_bpe
from ggm_image.tokenizers.registry import is_text_tokenizer
from tests.models import tiny_bpe

hf = pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BPETokenizer:
    return tiny_bpe(tmp_path_factory.mktemp("bpe"))


def changed(tokenizer: BPETokenizer, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    described = json.loads(tokenizer.path.read_text())
    change(described)
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(described))
    return folder / "tokenizer.json"


TEXTS = [
    b"",
    b" ",
    b"the cat",
    b"  two  spaces\r\n\n",
    bytes(range(256)) * 3,
    "h\u00e9 \U0001f408 e\u0301".encode(),
    b"\xf0\x9f",
]


def test_any_bytes_there_and_back(tokenizer: BPETokenizer) -> None:
    assert tokenizer.name == "bpe-266"
    for text in TEXTS:
        codes = tokenizer.codes(text)
        assert tokenizer.decode(torch.from_numpy(codes)[None, None]) == [text]
        assert tokenizer.code_lengths[codes].sum() == len(text)
    assert len(tokenizer.codes(b"the cat sat")) < 11
    rows = tokenizer.encode(["the cat sat on", b"a"])
    assert tokenizer.decode(rows)[1].rstrip(b"\n") == b"a"


def test_where_a_text_is_cut_plays_no_part(tokenizer: BPETokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggm_image.tokenizers.bpe.blocks", lambda pieces: blocks(pieces, 16))
    text = b"the cat sat on the mat, and " + b"x" * 40 + "\u00e9".encode() * 30 + b" the end"
    whole = tokenizer.codes(text)
    for size in (1, 5, 33):
        pieces = (text[k : k + size] for k in range(0, len(text), size))
        assert np.concatenate(list(tokenizer.stream(pieces))).tolist() == whole.tolist()
    found = list(blocks([text], 16))
    assert b"".join(found) == text
    assert max(map(len, found)) <= 16
    assert all(block.decode() for block in found)  # no character is cut


def test_words_are_the_same_with_and_without_blocks(tokenizer: BPETokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"the cat sat on the mat. the cat sat on the mat.\n\nthe  cat"
    whole = tokenizer.codes(text).tolist()
    monkeypatch.setattr("ggm_image.tokenizers.bpe.blocks", lambda pieces: blocks(pieces, 12))
    assert tokenizer.codes(text).tolist() == whole


def test_training_gives_the_same_file_again(tokenizer: BPETokenizer, tmp_path: Path) -> None:
    again = tiny_bpe(tmp_path)
    assert again.path.read_bytes() == tokenizer.path.read_bytes()
    assert again.sha256 == tokenizer.sha256
    with pytest.raises(UserError, match="257 to 65,536 codes"):
        train_bpe([b"a"], 256, tmp_path / "b.json")
    assert train_bpe([b"aaaa"], 4096, tmp_path / "b.json").codebook_size < 300


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda d: d.update(normalizer={"type": "Lowercase"}), "its normalizer"),
        (lambda d: d["pre_tokenizer"].update(add_prefix_space=True), "the space before the first word"),
        (
            lambda d: d.update(
                truncation={"max_length": 2, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}
            ),
            "",
        ),
        (
            lambda d: d.update(
                added_tokens=[
                    {
                        "id": 280,
                        "content": "<mask>",
                        "single_word": False,
                        "lstrip": True,
                        "rstrip": False,
                        "normalized": False,
                        "special": True,
                    }
                ]
            ),
            "",
        ),
    ],
)
def test_what_would_change_a_text_is_left_out(
    tokenizer: BPETokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[dict[str, Any]], object],
    note: str,
) -> None:
    found = BPETokenizer(changed(tokenizer, tmp_path / "t", change))
    for text in (*TEXTS, b"The <mask> cat"):
        assert found.decode(torch.from_numpy(found.codes(text))[None, None]) == [text]
    assert note in capsys.readouterr().err
    assert found.sha256 != tokenizer.sha256


def test_a_text_that_does_not_come_back_is_an_error(tokenizer: BPETokenizer, tmp_path: Path) -> None:
    """Here the file's own rules drop the letter x."""
    split = {"type": "Split", "pattern": {"String": "x"}, "behavior": "Removed", "invert": False}
    path = changed(
        tokenizer,
        tmp_path / "t",
        lambda d: d.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [split, d["pre_tokenizer"]]}),
    )
    with pytest.raises(UserError, match="byte for byte"):
        BPETokenizer(path).codes(b"axb")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda d: d.pop("model"), "must be a tokenizer.json with a vocabulary"),
        (lambda d: d["model"].update(vocab=["a"]), "must be a tokenizer.json with a vocabulary"),
        (lambda d: d["model"]["vocab"].update(a=-1), "must be a tokenizer.json with a vocabulary"),
        (lambda d: d["model"]["vocab"].pop("a"), "code for every byte.*lacks 1 of 256"),
        (lambda d: d["model"]["vocab"].update(z=70_000), "at most 65,536 codes"),
    ],
)
def test_files_that_cannot_be_used(
    tokenizer: BPETokenizer, tmp_path: Path, change: Callable[[dict[str, Any]], object], what: str
) -> None:
    with pytest.raises(UserError, match=what):
        BPETokenizer(changed(tokenizer, tmp_path / "t", change))


def test_found_by_its_file_and_by_its_folder(tokenizer: BPETokenizer, tmp_path: Path) -> None:
    for path in (tokenizer.path, tokenizer.path.parent):
        assert is_text_tokenizer(path)
        assert ggm_image.load_tokenizer(path).sha256 == tokenizer.sha256
    assert not is_text_tokenizer(tmp_path)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(UserError, match="must be a tokenizer.json"):
        ggm_image.load_tokenizer(tmp_path / "bad.json")


def test_decoding_needs_no_package(tokenizer: BPETokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    codes, original = tokenizer.codes(b"the cat"), builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "tokenizers":
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    fresh = BPETokenizer(tokenizer.path)
    assert fresh.decode(torch.from_numpy(codes)[None, None]) == [b"the cat"]
    with pytest.raises(UserError, match="pip install 'ggm-image\\[text\\]'"):
        fresh.codes(b"the cat")


def test_the_alphabet_is_that_of_the_package() -> None:
    assert sorted(byte_alphabet()) == sorted(hf.pre_tokenizers.ByteLevel.alphabet())
    level = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    text = "".join(map(chr, range(256)))
    assert [level.pre_tokenize_str(c)[0][0] for c in text] == [
        "".join(byte_alphabet()[b] for b in c.encode()) for c in text
    ]
