"""The byte tokenizer: every byte there and back."""

import pytest
import torch

import ggm_image
from ggm_image.errors import UserError
from ggm_image.tokenizers.registry import load_image_tokenizer
from ggm_image.tokenizers.text import ByteTokenizer


def test_every_byte_there_and_back() -> None:
    tokenizer = ByteTokenizer()
    everything = bytes(range(256))
    tokens = tokenizer.encode([everything, everything[::-1]])
    assert tokens.shape == (2, 1, 256)
    assert tokens.dtype == torch.int64
    assert tokens[0, 0].tolist() == list(range(256))
    assert tokenizer.decode(tokens) == [everything, everything[::-1]]


def test_strings_are_utf8_and_short_rows_are_filled_up() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode(["é", b"abc"])) == [b"\xc3\xa9\n", b"abc"]
    assert tokenizer.encode([]).shape == (0, 1, 0)


def test_by_name_with_the_identity_that_caches_go_by() -> None:
    tokenizer = ggm_image.load_tokenizer("bytes")
    assert (tokenizer.name, tokenizer.modality, tokenizer.codebook_size) == ("bytes", "text", 256)
    assert tokenizer.identity == {"tokenizer_sha256": tokenizer.sha256}
    assert len(tokenizer.sha256) == 64


@pytest.mark.parametrize(
    ("tokens", "what"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), "shape"),
        (torch.zeros(2, 2, 3, dtype=torch.int64), "shape"),
        (torch.zeros(2, 1, 3), "integers"),
        (torch.full((1, 1, 1), 256), r"\[0, 256\)"),
        (torch.full((1, 1, 1), -1), r"\[0, 256\)"),
    ],
)
@pytest.mark.usefixtures("unchecked_shapes")
def test_tokens_that_are_no_text(tokens: torch.Tensor, what: str) -> None:
    with pytest.raises(UserError, match=what):
        ByteTokenizer().decode(tokens)


def test_texts_that_are_none() -> None:
    with pytest.raises(UserError, match="list"):
        ByteTokenizer().encode("abc")
    with pytest.raises(UserError, match="bytes or a string"):
        ByteTokenizer().encode([3])  # type: ignore[list-item]


def test_commands_for_images_refuse_it() -> None:
    with pytest.raises(UserError, match="did you mean bytes"):
        load_image_tokenizer("byte")
    with pytest.raises(UserError, match="one of images"):
        load_image_tokenizer("bytes")
