"""Tokenizers of text: bytes to codes, and back without loss."""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ggm_image.errors import UserError

PADDING = b"\n"
"""What fills up a row that has less text than the others."""


class ByteTokenizer:
    """The 256 byte values as codes. It has no weights, takes any bytes, and loses nothing.

    Attributes:
        name: by which token caches and models call it.
        modality: what it encodes.
        codebook_size: 256.
        sha256: SHA-256 of the table of its codes, in place of that of a weights file: 64 hexadecimal digits.
    """

    name = "bytes"
    modality = "text"
    codebook_size = 256
    sha256 = hashlib.sha256(bytes(range(256))).hexdigest()

    @property
    def identity(self) -> dict[str, str]:
        """What decoded text depends on besides its tokens, for manifests."""
        return {"tokenizer_sha256": self.sha256}

    def encode(self, texts: Sequence[bytes | str]) -> Int[Tensor, "n 1 l"]:
        """Codes of texts, one a row.

        Args:
            texts: (N,) bytes, or strings, which are encoded as UTF-8. Texts shorter than the longest are filled up at
                their end with `PADDING`.

        Returns:
            (N, 1, L) int64 in [0, 256), where L is the number of bytes of the longest text.

        Raises:
            UserError: an item is neither bytes nor a string.
        """
        if isinstance(texts, bytes | str):
            raise UserError("texts must be a list", f"got {type(texts).__name__}", "put the text into a list")
        rows = [self._bytes(text) for text in texts]
        longest = max(map(len, rows), default=0)
        joined = b"".join(row.ljust(longest, PADDING) for row in rows)
        codes = np.frombuffer(joined, np.uint8).astype(np.int64).reshape(len(rows), 1, longest)
        return torch.from_numpy(codes)

    @staticmethod
    def _bytes(text: object) -> bytes:
        if isinstance(text, str):
            return text.encode("utf-8", "surrogateescape")
        if isinstance(text, bytes | bytearray | memoryview):
            return bytes(text)
        raise UserError("a text must be bytes or a string", f"got {type(text).__name__}", "read the file first")

    def decode(self, tokens: Int[Tensor, "n 1 l"]) -> list[bytes]:
        """The bytes of every row.

        Args:
            tokens: (N, 1, L) integers in [0, 256).

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
        return [row.tobytes() for row in tokens[:, 0].cpu().numpy().astype(np.uint8)]


TEXT_TOKENIZERS: Mapping[str, Callable[[], ByteTokenizer]] = {"bytes": ByteTokenizer}
"""Tokenizers of text by name."""
