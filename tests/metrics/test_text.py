"""Figures of samples of text, against counts by hand."""

import math

import numpy as np
import pytest

from ggm_image.errors import UserError
from ggm_image.metrics.text import (
    entropy,
    generative_perplexity,
    known_word_share,
    ratio_interval,
    text_figures,
    vocabulary,
    word_entropy,
    words,
)


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


def test_generative_perplexity_is_that_of_all_bytes_together() -> None:
    """A reference of letters: P(a) = 1/2, P(b) = 1/4, P(c) = 1/8. Seen to fail with the mean over the samples."""
    bits = {97: 1, 98: 2, 99: 3}
    samples = [b"aab", b"cbbbbbbbb"]
    costs = np.array([sum(bits[byte] for byte in sample) for sample in samples]) * math.log(2)
    assert costs / math.log(2) == pytest.approx([4, 19])
    assert generative_perplexity(samples, costs) == pytest.approx(2 ** (23 / 12))
    assert generative_perplexity([b"abc"] * 3, np.full(3, 3 * math.log(256))) == pytest.approx(256)
    for wrong, how in (([], "hold text"), ([b"a", b""], "hold text"), ([b"a"], "a cost each")):
        with pytest.raises(UserError, match=how):
            generative_perplexity(wrong, np.zeros(2))


def test_the_interval_covers_the_share_as_often_as_it_says() -> None:
    """Of 400 sets of 60 samples 95% of the intervals hold the true share, within four deviations.

    Seen to fail with the rows resampled apart in the two sums, and with half of the samples.
    """
    rng, hits, n = np.random.default_rng(0), 0, 400
    for k in range(n):
        counted = rng.integers(10, 40, 60)
        found = rng.binomial(counted, 0.8)
        low, high = ratio_interval(found, counted, seed=k)
        hits += low <= 0.8 <= high
    assert abs(hits / n - 0.95) < 4 * math.sqrt(0.95 * 0.05 / n)
    assert ratio_interval(found, counted, seed=1) == ratio_interval(found, counted, seed=1)


def test_all_figures_of_samples() -> None:
    """Each is that of its function, inside its interval; without costs there is no perplexity."""
    known = {b"the", b"cat", b"sat"}
    samples = [b"xx the cat sat", b"a the bat the dog q", b"the the sat cat cat x"] * 4
    costs = np.array([14.0, 25.0, 22.0] * 4)
    found = text_figures(samples, known, costs)
    assert found["n"] == 12
    assert found["known_words"] == round(known_word_share(samples, known), 4)
    assert found["perplexity"] == round(generative_perplexity(samples, costs), 4)
    assert found["byte_entropy"] == round(entropy(samples), 3)
    assert found["word_entropy"] == round(word_entropy(samples), 3)
    for name in ("perplexity", "known_words", "byte_entropy"):
        low, high = found[f"{name}_interval"]
        assert low < found[name] < high
    plain = text_figures(samples, known)
    assert plain == {name: value for name, value in found.items() if "perplexity" not in name}
    with pytest.raises(UserError, match="three words"):
        text_figures([b"a b"], known)
