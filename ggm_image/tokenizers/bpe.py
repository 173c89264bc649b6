"""Byte-level BPE from a ``tokenizer.json`` of Hugging Face's ``tokenizers``.

A byte-level tokenizer (GPT-2's kind) has a code for each of the 256 bytes, and every code stands for fixed bytes, so
any file is encoded and decoded without loss. Steps of a ``tokenizer.json`` that would change the text are disabled: the
normalizer, the space before the first word, special tokens, truncation and padding. Every encoded block is decoded
again and compared.

Decoding only needs the file; encoding needs the package, ``pip install 'ggm-image[text]'``.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from ggm_image.errors import UserError
from ggm_image.io.files import atomic_path
from ggm_image.runtime.streams import say
from ggm_image.tokenizers.text import TextTokenizer

FILE = "tokenizer.json"
BLOCK = 1 << 16
"""Bytes of a text that are encoded at a time. Texts are cut before a space or line break, where words end anyway."""
MOST_CODES = 1 << 16
"""Tokens are stored in 16 bits."""
_BYTES_THAT_ARE_CHARACTERS = [*range(33, 127), *range(161, 173), *range(174, 256)]


def byte_alphabet() -> list[str]:
    """The character by which byte-level vocabularies write each of the 256 bytes."""
    others = iter(range(256, 512))
    return [chr(byte if byte in _BYTES_THAT_ARE_CHARACTERS else next(others)) for byte in range(256)]


def find_tokenizer_file(name_or_path: str | Path) -> Path | None:
    """The ``tokenizer.json`` that a path names: a JSON file, or a folder that has one; None for anything else."""
    path = Path(name_or_path)
    if path.suffix == ".json" and path.is_file():
        return path
    # A folder with config.yaml is a tokenizer or a model of ours.
    return path / FILE if (path / FILE).is_file() and not (path / "config.yaml").exists() else None


class BPETokenizer(TextTokenizer):
    """A saved byte-level tokenizer, named ``bpe-V`` by its number of codes.

    Args:
        path: of the ``tokenizer.json``.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        fix = "use a byte-level BPE, for example one that train-tokenizer makes"
        try:
            content = self.path.read_bytes()
            described: dict[str, Any] = json.loads(content)
            vocabulary: dict[str, int] = dict(described["model"]["vocab"])
            added = {str(entry["content"]): entry for entry in described.get("added_tokens") or []}
            # An added token may repeat an entry of the vocabulary, which then takes precedence.
            entries = {**{text: entry["id"] for text, entry in added.items()}, **vocabulary}
            if not all(type(code) is int and code >= 0 for code in entries.values()):
                raise ValueError("codes must be whole numbers")
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            why = f"{self.path}: {type(error).__name__}: {error}"
            raise UserError(f"a tokenizer of text must be a {FILE} with a vocabulary", why, fix) from error
        # Without a code for every byte, some text could not be encoded.
        alphabet = {character: byte for byte, character in enumerate(byte_alphabet())}
        missing = sum(character not in vocabulary for character in alphabet)
        if missing:
            what = "a tokenizer of text must have a code for every byte"
            raise UserError(what, f"{self.path} lacks {missing} of 256", fix)
        # Codes may have gaps, so the largest one decides and not the number of entries.
        size = max(entries.values()) + 1
        if size > MOST_CODES:
            raise UserError(f"a tokenizer must have at most {MOST_CODES:,} codes", f"{self.path}: {size:,}", fix)
        table = [b""] * size
        for text, code in entries.items():
            # Added tokens are stored as plain text, all others in the byte alphabet.
            plain = text in added or not all(character in alphabet for character in text)
            table[code] = text.encode("utf-8") if plain else bytes(alphabet[character] for character in text)
        self.code_bytes, self.name = table, f"bpe-{size}"
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._described = described
        # The codes of single bytes, for bytes that are not UTF-8.
        self._byte_codes = np.array([vocabulary[character] for character in byte_alphabet()])

    @property
    def source(self) -> str:
        return str(self.path)

    @cached_property
    def _library(self) -> Any:
        """The same tokenizer in Hugging Face's package, without what would change a text."""
        try:
            import tokenizers
        except ImportError as error:
            got, fix = f"{self.name} at {self.path}", "pip install 'ggm-image[text]'"
            raise UserError("encoding text needs the package tokenizers", got, fix) from error
        described, left_out = dict(self._described), []
        if described.get("normalizer"):
            left_out.append("its normalizer")
        described.update(normalizer=None, truncation=None, padding=None, post_processor=None)
        described["added_tokens"] = [e for e in described.get("added_tokens") or [] if not e.get("special")]
        if _without_prefix_space(described.get("pre_tokenizer")):
            left_out.append("the space before the first word")
        if left_out:
            say(f"note: {self.path}: left out {' and '.join(left_out)}, so that text comes back byte for byte")
        try:
            return tokenizers.Tokenizer.from_str(json.dumps(described))
        except Exception as error:  # the package raises plain Exceptions
            raise UserError(f"{FILE} cannot be read", f"{self.path}: {error}", "copy it again") from error

    def stream(self, pieces: Iterable[bytes]) -> Iterator[Integer[np.ndarray, " t"]]:
        """Codes block by block, uint16."""
        return map(self._encode_block, blocks(pieces))

    def _encode_block(self, block: bytes) -> Integer[np.ndarray, " t"]:
        codes: list[int] = []
        # Bytes that are no UTF-8 become lone surrogates, and these the codes of single bytes.
        text = block.decode("utf-8", "surrogateescape")
        for k, part in enumerate(re.split("([\udc80-\udcff]+)", text)):
            if k % 2:
                codes += self._byte_codes[np.frombuffer(part.encode("utf-8", "surrogateescape"), np.uint8)].tolist()
            elif part:
                codes += self._library.encode(part, add_special_tokens=False).ids
        result = np.array(codes, dtype=np.uint16)
        if self._joined(result) != block:
            got = f"{self.path}, of a block that starts with {block[:40]!r}"
            raise UserError("a tokenizer of text must give it back byte for byte", got, "use another tokenizer")
        return result


def _without_prefix_space(node: Any) -> bool:
    """Set every ``add_prefix_space`` below a node to false; whether one was true."""
    if isinstance(node, list):
        return sum(map(_without_prefix_space, node)) > 0
    if not isinstance(node, dict):
        return False
    found = bool(node.get("add_prefix_space"))
    if found:
        node["add_prefix_space"] = False
    return _without_prefix_space(list(node.values())) or found


def blocks(pieces: Iterable[bytes], size: int = BLOCK) -> Iterator[bytes]:
    """A text that comes in pieces as blocks of at most ``size`` bytes, the same for any pieces.

    They are cut before the last space or line break, or where there is none between two characters of UTF-8.
    """
    held = bytearray()
    for piece in pieces:
        held += piece
        start = 0
        while len(held) - start > size:
            window = bytes(held[start : start + size])
            end = max(window.rfind(b" ", 1), window.rfind(b"\n", 1))
            if end < 1:
                end = size
                while end > max(1, size - 4) and held[start + end] & 0xC0 == 0x80:
                    end -= 1
            yield window[:end]
            start += end
        del held[:start]
    if held:
        yield bytes(held)


def train_bpe(pieces: Iterable[bytes], codes: int, out: str | Path) -> BPETokenizer:
    """Train a byte-level BPE on text and save it as a ``tokenizer.json``.

    Args:
        pieces: of text; what is no UTF-8 in it is left out, which costs nothing, as every byte has a code anyway.
        codes: V, of which 256 are the bytes. A small text gives fewer.
    """
    if not 256 < codes <= MOST_CODES:
        raise UserError(f"a BPE must have 257 to {MOST_CODES:,} codes", codes, "use for example 4096")
    try:
        import tokenizers
    except ImportError as error:
        raise UserError("BPE needs the package tokenizers", f"bpe-{codes}", "pip install 'ggm-image[text]'") from error
    level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer, made.decoder = level, tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=codes, initial_alphabet=byte_alphabet(), show_progress=False)
    made.train_from_iterator((block.decode("utf-8", "ignore") for block in blocks(pieces)), trainer)
    with atomic_path(out) as temporary:
        Path(temporary).write_text(made.to_str(pretty=True), encoding="utf-8")
    return BPETokenizer(out)
