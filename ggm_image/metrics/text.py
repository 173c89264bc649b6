"""What samples of text are like: their perplexity under a reference, words that are known, how varied their bytes are.

None is a measure of quality by itself: a model that repeats one sentence of its training text has only known words and
a low perplexity, and noise has the largest entropy. Give all, beside those of held-out text. `text_figures` does.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ggm_image.errors import UserError

_WORD = re.compile(rb"[A-Za-z0-9\x80-\xff]+(?:'[A-Za-z0-9\x80-\xff]+)*")


def words(text: bytes) -> list[bytes]:
    """The words of a text in small letters: runs of letters, digits and bytes beyond ASCII, apostrophes inside."""
    return [word.lower() for word in _WORD.findall(text)]


def vocabulary(pieces: Iterable[bytes]) -> set[bytes]:
    """All words of a text that comes in pieces; a word that is cut by the end of a piece is put together again."""
    found: set[bytes] = set()
    rest = b""
    for piece in pieces:
        text = rest + piece
        # The word after the last separator may continue in the next piece.
        end = len(text)
        while end and re.match(rb"[A-Za-z0-9\x80-\xff']", text[end - 1 : end]):
            end -= 1
        found.update(words(text[:end]))
        rest = text[end:]
    found.update(words(rest))
    return found


def known_word_share(samples: Sequence[bytes], known: set[bytes]) -> float:
    """Share in [0, 1] of the words of samples that occur in the training text.

    The first and the last word of each sample are left out: they may be cut.

    Args:
        samples: texts.
        known: `vocabulary` of the training text.

    Raises:
        UserError: the samples have no word that counts.
    """
    found, counted = _known_words(samples, known)
    return int(found.sum()) / int(counted.sum())


def _known_words(samples: Sequence[bytes], known: set[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Of every sample the known words and all that count; as `known_word_share`."""
    counted = [words(sample)[1:-1] for sample in samples]
    total = np.array([len(row) for row in counted])
    if not total.sum():
        raise UserError("samples must have at least three words", f"{len(samples)} samples", "sample longer texts")
    return np.array([sum(word in known for word in row) for row in counted]), total


def generative_perplexity(samples: Sequence[bytes], costs: Float[np.ndarray, " n"]) -> float:
    """The perplexity of samples per byte under a reference model: exp(sum of -log p / sum of bytes).

    Args:
        samples: texts.
        costs: (N,) -log p of each sample under the reference, in nats.

    Raises:
        UserError: there are no samples, one is empty, or another number of costs.
    """
    lengths = _lengths(samples)
    if len(costs) != len(lengths):
        raise UserError("samples need a cost each", f"{len(lengths)} samples, {len(costs)} costs", "measure them again")
    return math.exp(float(np.sum(costs)) / int(lengths.sum()))


def _lengths(samples: Sequence[bytes]) -> np.ndarray:
    if not samples or not all(samples):
        raise UserError("samples must hold text", f"{len(samples)} samples", "sample at least one byte")
    return np.array([len(sample) for sample in samples])


def entropy(samples: Sequence[bytes]) -> float:
    """The entropy of the bytes of each sample, in bits per byte; the mean over the samples, in [0, 8].

    A sample that repeats itself has few, so it shows what a low perplexity was bought with.

    Raises:
        UserError: there are no samples, or one is empty.
    """
    _lengths(samples)
    return sum(map(_entropy, samples)) / len(samples)


def _entropy(sample: bytes) -> float:
    counts = np.bincount(np.frombuffer(sample, np.uint8))
    share = counts[counts > 0] / len(sample)
    return float(-(share * np.log2(share)).sum()) + 0.0


def word_entropy(samples: Sequence[bytes]) -> float:
    """The entropy of the words of all samples together, in bits per word."""
    counts = Counter(word for sample in samples for word in words(sample))
    total = counts.total()
    if not total:
        raise UserError("samples must have words", f"{len(samples)} samples", "sample longer texts")
    return -sum(n / total * math.log2(n / total) for n in counts.values()) + 0.0


def ratio_interval(
    numerators: np.ndarray, denominators: np.ndarray, *, replicates: int = 200, seed: int = 0
) -> tuple[float, float]:
    """95% bootstrap interval of sum(numerators) / sum(denominators), where a sample adds one of each to the sums.

    Args:
        numerators, denominators: (N,) of the samples, which are resampled with replacement.
        replicates: how often.
        seed: of the resampling.
    """
    rng, n = np.random.default_rng(seed), len(numerators)
    found = []
    for _ in range(replicates):
        rows = rng.integers(n, size=n)
        found.append(numerators[rows].sum() / max(denominators[rows].sum(), 1e-12))
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def text_figures(
    samples: Sequence[bytes], known: set[bytes], costs: Float[np.ndarray, " n"] | None = None, *, seed: int = 0
) -> dict[str, Any]:
    """All figures of samples, for JSON; `generative_perplexity`, `known_word_share` and `entropy` with 95% intervals.

    Args:
        samples: texts.
        known: `vocabulary` of the training text.
        costs: (N,) -log p of each sample under a reference, in nats; without them there is no perplexity.
        seed: of the bootstrap over the samples.

    Raises:
        UserError: as the functions of the figures.
    """
    lengths = _lengths(samples)
    found, counted = _known_words(samples, known)
    entropies = np.array([_entropy(sample) for sample in samples])
    figures: dict[str, Any] = {"n": len(samples)}
    if costs is not None:
        figures["perplexity"] = round(generative_perplexity(samples, costs), 4)
        interval = ratio_interval(np.asarray(costs), lengths, seed=seed)
        figures["perplexity_interval"] = [round(math.exp(end), 4) for end in interval]
    share = ratio_interval(found, counted, seed=seed)
    spread = ratio_interval(entropies, np.ones(len(entropies)), seed=seed)
    return figures | {
        "known_words": round(int(found.sum()) / int(counted.sum()), 4),
        "known_words_interval": [round(end, 4) for end in share],
        "byte_entropy": round(entropy(samples), 3),
        "byte_entropy_interval": [round(end, 3) for end in spread],
        "word_entropy": round(word_entropy(samples), 3),
    }
