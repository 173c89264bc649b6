"""Tokenizers of text, which map bytes to codes and back without loss."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Int, Integer
from torch import Tensor

from ggm_image.errors import UserError

PADDING = b"\n"
"""What fills up a row that has less text than the others."""


class TextTokenizer(ABC):
    """Bytes to codes, and back without loss: the bytes of a text are those of its codes, one after the other.

    Attributes:
        code_bytes: (V,) the bytes of each code.
        source: the name or path by which it is loaded.
        sha256: of what decides the codes, in place of that of a weights file: 64 hexadecimal digits.
    """

    name: str
    modality = "text"
    code_bytes: Sequence[bytes]
    sha256: str

    @property
    def codebook_size(self) -> int:
        return len(self.code_bytes)

    @property
    def source(self) -> str:
        return self.name

    @property
    def identity(self) -> dict[str, str]:
        """What decoded text depends on besides its tokens, for manifests."""
        return {"tokenizer_sha256": self.sha256}

    @cached_property
    def code_lengths(self) -> Integer[np.ndarray, " v"]:
        """(V,) number of bytes of each code."""
        return np.array([len(code) for code in self.code_bytes], dtype=np.int64)

    @abstractmethod
    def stream(self, pieces: Iterable[bytes]) -> Iterator[Integer[np.ndarray, " t"]]:
        """The codes of one text that comes in pieces, in arrays of any length; where it is cut plays no part."""

    def codes(self, text: bytes | str) -> Integer[np.ndarray, " t"]:
        """(T,) int64 codes of one text; a string is encoded as UTF-8.

        Raises:
            UserError: it is neither bytes nor a string.
        """
        return np.concatenate([np.zeros(0, np.int64), *self.stream([_as_bytes(text)])]).astype(np.int64)

    @cached_property
    def padding(self) -> int:
        """The code of `PADDING`."""
        return int(self.codes(PADDING)[0])

    def encode(self, texts: Sequence[bytes | str]) -> Int[Tensor, "n 1 l"]:
        """Codes of texts, one a row.

        Args:
            texts: (N,) bytes, or strings, which are encoded as UTF-8. Texts of fewer codes than the longest are filled
                up at their end with `PADDING`.

        Returns:
            (N, 1, L) int64 in [0, V), where L is the number of codes of the longest text.

        Raises:
            UserError: an item is neither bytes nor a string.
        """
        if isinstance(texts, bytes | str):
            raise UserError("texts must be a list", f"got {type(texts).__name__}", "put the text into a list")
        rows = [self.codes(text) for text in texts]
        longest = max(map(len, rows), default=0)
        result = np.full((len(rows), 1, longest), self.padding, dtype=np.int64)
        for row, codes in zip(result, rows, strict=True):
            row[0, : len(codes)] = codes
        return torch.from_numpy(result)

    def decode(self, tokens: Int[Tensor, "n 1 l"]) -> list[bytes]:
        """The bytes of every row.

        Args:
            tokens: (N, 1, L) integers in [0, V).

        Raises:
            UserError: for a wrong shape, a wrong type, or tokens out of range.
        """
        if tokens.ndim != 3 or tokens.shape[1] != 1 or tokens.is_floating_point():
            got = f"got {tokens.dtype} {tuple(tokens.shape)}"
            raise UserError("tokens of text must be integers of shape (N, 1, L)", got, "reshape (N, L) to (N, 1, L)")
        if tokens.numel() and (int(tokens.min()) < 0 or int(tokens.max()) >= self.codebook_size):
            raise UserError(
                f"tokens must lie in [0, {self.codebook_size})",
                f"got {int(tokens.min())} to {int(tokens.max())}",
                "was this set encoded with another tokenizer?",
            )
        return [self._joined(row) for row in tokens[:, 0].cpu().numpy()]

    def _joined(self, codes: Integer[np.ndarray, " t"]) -> bytes:
        return b"".join([self.code_bytes[code] for code in codes.tolist()])


def _as_bytes(text: object) -> bytes:
    if isinstance(text, str):
        return text.encode("utf-8", "surrogateescape")
    if isinstance(text, bytes | bytearray | memoryview):
        return bytes(text)
    raise UserError("a text must be bytes or a string", f"got {type(text).__name__}", "read the file first")


class ByteTokenizer(TextTokenizer):
    """The 256 byte values as codes. It has no weights, takes any bytes, and loses nothing."""

    name = "bytes"
    code_bytes = tuple(bytes([k]) for k in range(256))
    sha256 = hashlib.sha256(bytes(range(256))).hexdigest()

    def stream(self, pieces: Iterable[bytes]) -> Iterator[Integer[np.ndarray, " t"]]:
        """The bytes themselves, uint8."""
        return (np.frombuffer(piece, np.uint8) for piece in pieces)

    def _joined(self, codes: Integer[np.ndarray, " t"]) -> bytes:
        return codes.astype(np.uint8).tobytes()


TEXT_TOKENIZERS: Mapping[str, Callable[[], TextTokenizer]] = {"bytes": ByteTokenizer}
"""Tokenizers of text by name."""
