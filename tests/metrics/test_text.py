"""Figures of samples of text, against counts by hand."""

import pytest

from ggm_image.errors import UserError
from ggm_image.metrics.text import entropy, known_word_share, vocabulary, word_entropy, words


def test_words() -> None:
    assert words(b"It's 'the' Best--of 2 times.\xc3\xa9t\xc3\xa9") == [
        *(b"it's", b"the", b"best", b"of", b"2", b"times", "été".encode()),
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_a_vocabulary_does_not_depend_on_the_pieces(size: int) -> None:
    text = b"The cat's hat, the dog. End"
    pieces = [text[k : k + size] for k in range(0, len(text), size)]
    assert vocabulary(pieces) == {b"the", b"cat's", b"hat", b"dog", b"end"}


def test_share_of_known_words_without_the_cut_ones() -> None:
    known = {b"the", b"cat"}
    assert known_word_share([b"xx the cat qq yy", b"xx The bat yy"], known) == 3 / 5
    with pytest.raises(UserError, match="three words"):
        known_word_share([b"a b", b""], known)


def test_entropies() -> None:
    assert entropy([b"aaaa"]) == 0
    assert entropy([b"aabb", b"abcd"]) == 1.5
    assert entropy([bytes(range(256))]) == pytest.approx(8)
    assert word_entropy([b"a b", b"a B c d a a"]) == pytest.approx(0.5 + 0.5 + 2 * 3 / 8)
    for samples in ([], [b"a", b""]):
        with pytest.raises(UserError):
            entropy(samples)
    with pytest.raises(UserError):
        word_entropy([b"--"])
