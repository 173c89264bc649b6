"""What samples of text are like: words that the training text has, and how varied their bytes are.

Neither is a measure of quality by itself: a model that repeats one sentence of its training text has only known words,
and noise has the largest entropy. Give both, beside those of held-out text.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

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
    counted = [word for sample in samples for word in words(sample)[1:-1]]
    if not counted:
        raise UserError("samples must have at least three words", f"{len(samples)} samples", "sample longer texts")
    return sum(word in known for word in counted) / len(counted)


def entropy(samples: Sequence[bytes]) -> float:
    """The entropy of the bytes of each sample, in bits per byte; the mean over the samples, in [0, 8].

    A sample that repeats itself has few, so it shows what a low perplexity was bought with.

    Raises:
        UserError: there are no samples, or one is empty.
    """
    if not samples or not all(samples):
        raise UserError("samples must hold text", f"{len(samples)} samples", "sample at least one byte")
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
