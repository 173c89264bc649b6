"""Encode text into a token cache, and decode it without loss.

The codes of the documents are joined without a separator and cut into rows of equal length; no code spans two
documents, and a row may hold the end of one and the start of the next. Only the very last row is padded. Each shard
stores the start and the name of every document that starts in it, so that documents can be restored exactly.

A source is read twice: once to count and hash it, once to encode it. Resuming after an interruption therefore first
verifies that the text has not changed.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from ggm_image.data.encode import open_writer
from ggm_image.data.sources.text import Document, Fingerprint, TextSource, open_text
from ggm_image.data.token_cache.manifest import SHARD_SIZE, Manifest
from ggm_image.data.token_cache.reader import TokenCache
from ggm_image.data.token_cache.verify import verify
from ggm_image.data.token_cache.writer import TokenCacheWriter
from ggm_image.errors import UserError
from ggm_image.io.files import atomic_folder, atomic_path
from ggm_image.runtime.progress import progress_bar
from ggm_image.tokenizers.text import PADDING, ByteTokenizer, TextTokenizer

LONGEST = 1 << 16
"""Tokens of a row at most: what a grid may have."""

_STARTS, _NAMES = "document_starts", "document_names"


def encode_text(
    source: str | os.PathLike[str] | TextSource,
    out: str | os.PathLike[str],
    tokenizer: TextTokenizer,
    *,
    length: int = 256,
    text_key: str = "text",
    shard_size: int = SHARD_SIZE,
    share: tuple[int, int] = (0, 1),
    overwrite: bool = False,
) -> TokenCache | None:
    """Encode all documents of ``source`` into a token cache at ``out``, or this process's share of its shards.

    Run again after an interruption, the same call resumes after the finished shards. Memory stays that of one shard.

    Args:
        source: of `open_text`.
        out: folder of the cache.
        length: L, tokens of a row.
        text_key: the field of each JSON line that holds its text.
        shard_size: rows a shard.
        share: number of this process, and how many there are.
        overwrite: replace a token cache at ``out`` of other text or settings.

    Returns:
        The cache, with grid (1, L) and no classes; None if other processes still have shards to write.

    Raises:
        UserError: no text, a damaged file, or a folder that holds something else.
    """
    if not 1 <= length <= LONGEST:
        raise UserError(f"length must lie in [1, {LONGEST}]", length, "use for example 256")
    if shard_size < 1:
        raise UserError("shard size must be at least 1", shard_size, f"use {SHARD_SIZE}")
    out = Path(out)
    opened = source if isinstance(source, TextSource) else open_text(source, text_key=text_key)
    found, tokens = count_tokens(opened, tokenizer)
    if not found.bytes:
        raise UserError("source must hold text", f"{opened.description}: {found.documents} empty documents", "add some")
    manifest = _request(opened, tokenizer, found, tokens, length, shard_size)
    writer = open_writer(out, manifest, share, overwrite=overwrite)
    try:
        pending = set(writer.pending_units())
        if pending:
            for shard in _shards(opened, manifest, tokenizer, pending):
                if shard.number in pending:
                    _write(writer, shard, tokenizer)
        left = writer.finish()
    except _Changed:
        for shard_number in pending:  # what was written of it may be of either text
            writer.drop(shard_number)
        writer.discard_if_empty()
        raise
    except BaseException:
        writer.discard_if_empty()
        raise
    return None if left else TokenCache.open(out)


def _request(
    source: TextSource, tokenizer: TextTokenizer, found: Fingerprint, tokens: int, length: int, shard_size: int
) -> Manifest:
    return Manifest(
        tokenizer_name=tokenizer.name,
        tokenizer_sha256=tokenizer.sha256,
        tokenizer_source=tokenizer.source,
        codebook_size=tokenizer.codebook_size,
        grid=(1, length),
        image_size=0,
        class_names=[],
        preprocessing={"order": "as read, documents joined", "padding": PADDING.decode()},
        source={
            "path": source.description,
            "documents": found.documents,
            "bytes": found.bytes,
            "sha256": found.hexdigest(),
            **({"tokens": tokens} if tokens != found.bytes else {}),
        },
        items=-(-tokens // length),
        shard_size=shard_size,
        modality="text",
    )


def fingerprint(source: TextSource) -> Fingerprint:
    """Read a source once: its documents, bytes and hash."""
    return count_tokens(source, ByteTokenizer())[0]


def count_tokens(source: TextSource, tokenizer: TextTokenizer) -> tuple[Fingerprint, int]:
    """Read a source once: its documents, bytes and hash, and the number of its tokens."""
    found, total = Fingerprint(), 0
    with progress_bar(total=None, unit="tok", label="read", scaled=True) as advance:
        for document in source.documents():
            for codes in tokenizer.stream(found.read(document)):
                total += len(codes)
                advance(len(codes))
    return found, total


class _Changed(UserError):
    """The text was another one when it was read again."""


@dataclass
class _Shard:
    """The codes of one shard, and where the documents that start in it begin, in tokens from the start of all."""

    number: int
    codes: list[np.ndarray] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)


def _shards(source: TextSource, manifest: Manifest, tokenizer: TextTokenizer, wanted: set[int]) -> Iterator[_Shard]:
    """All shards in order, those that are wanted with their codes. The source must be what the manifest was made of."""
    size, total, last = manifest.shard_size * manifest.grid[1], _tokens_in_all(manifest), manifest.shards_in_all - 1
    shard, position, again = _Shard(0), 0, Fingerprint()
    changed = _Changed("text has changed while it was read", source.description, "run the same command again")
    with progress_bar(total=total, unit="tok", label="encode", scaled=True) as advance:
        for document in source.documents():
            # A document that starts where a shard ends belongs to the next one, if there is one.
            if position == (shard.number + 1) * size and shard.number < last:
                yield shard
                shard = _Shard(shard.number + 1)
            shard.starts.append(position)
            shard.names.append(document.name)
            for piece in tokenizer.stream(again.read(document)):
                place = 0
                while place < len(piece):
                    if position == (shard.number + 1) * size:
                        if shard.number == last:
                            raise changed
                        yield shard
                        shard = _Shard(shard.number + 1)
                    part = piece[place : place + (shard.number + 1) * size - position]
                    if shard.number in wanted:
                        shard.codes.append(part)
                    place, position = place + len(part), position + len(part)
                    advance(len(part))
        if position != total or shard.number != last or again.hexdigest() != manifest.source["sha256"]:
            raise changed
        yield shard


def _write(writer: TokenCacheWriter, shard: _Shard, tokenizer: TextTokenizer) -> None:
    length, count = writer.manifest.grid[1], sum(map(len, shard.codes))
    rows = np.full((-(-count // length), 1, length), tokenizer.padding, dtype=np.int64)
    rows.reshape(-1)[:count] = np.concatenate(shard.codes)
    names = json.dumps(shard.names).encode("ascii")
    writer.write(
        torch.from_numpy(rows),
        torch.full((len(rows),), -1),
        shard=shard.number,
        extra={
            _STARTS: np.array(shard.starts, dtype=np.int64),
            _NAMES: np.frombuffer(names, np.uint8),
            "document_sizes": np.array([len(shard.starts), len(names)], dtype=np.int64),
        },
    )


def _tokens_in_all(manifest: Manifest) -> int:
    """How many tokens all documents have together: as many as bytes where the manifest does not say so."""
    return int(manifest.source.get("tokens", manifest.source["bytes"]))


def check_is_text(cache: TokenCache) -> None:
    """Raise UserError unless a token cache is one of text."""
    if cache.manifest.modality != "text":
        raise UserError("token cache must be one of text", cache.folder, "give one that encode made with bytes")


def documents(cache: TokenCache, tokenizer: TextTokenizer) -> Iterator[Document]:
    """The documents of a cache of text in order, as they were read; to be read one after the other."""
    check_is_text(cache)
    manifest = cache.manifest
    if tokenizer.sha256 != manifest.tokenizer_sha256:
        got = f"made with {manifest.tokenizer_name}, got {tokenizer.name}"
        raise UserError("token cache must be decoded with the tokenizer that made it", got, "name the right one")
    total = _tokens_in_all(manifest)
    table = ((start, name) for shard in range(len(manifest.shards)) for start, name in _table(cache, shard))
    current = next(table, None)
    if current is None or current[0] != 0:
        raise UserError("token cache must start with a document", cache.folder, "encode the text again")
    while current is not None:
        following = next(table, None)
        end = total if following is None else following[0]
        yield Document(current[1], _pieces(cache, tokenizer, current[0], end))
        current = following


def _table(cache: TokenCache, shard: int) -> Iterator[tuple[int, str]]:
    """Start and name of the documents that start in a shard."""
    count, size = cache.arrays(shard, {"document_sizes": ("I64", [2])})["document_sizes"].tolist()
    arrays = cache.arrays(shard, {_STARTS: ("I64", [count]), _NAMES: ("U8", [size])})
    names = json.loads(arrays[_NAMES].tobytes())
    yield from zip(arrays[_STARTS].tolist(), names, strict=True)


def _pieces(cache: TokenCache, tokenizer: TextTokenizer, start: int, end: int) -> Iterator[bytes]:
    """The bytes of the tokens from ``start`` to ``end`` of all documents together."""
    length, step = cache.manifest.grid[1], max(1, (1 << 20) // cache.manifest.grid[1])
    for first in range(start // length, -(-end // length), step):
        rows = np.arange(first, min(first + step, -(-end // length)))
        tokens = cache.tokens(rows).flatten()[max(0, start - first * length) : end - first * length]
        yield tokenizer.decode(tokens.view(1, 1, -1))[0]


def decode_to_file(cache: TokenCache, out: str | os.PathLike[str], tokenizer: TextTokenizer) -> int:
    """Write all documents of a cache into one file, one after the other without a separator, whole or not at all."""
    count = 0
    with atomic_path(out) as temporary, open(temporary, "wb") as file:
        for document in documents(cache, tokenizer):
            file.writelines(document.pieces)
            count += 1
    return count


def decode_to_folder(cache: TokenCache, out: str | os.PathLike[str], tokenizer: TextTokenizer) -> int:
    """Write every document of a cache into a file of its own, called as it was; the folder is whole or not there.

    Where two documents have one name, the later one gets a number behind it.
    """
    count, taken = 0, set()
    with atomic_folder(out) as folder:
        for document in documents(cache, tokenizer):
            count += 1
            name = PurePosixPath(document.name)
            if name.is_absolute() or ".." in name.parts or not name.parts:
                raise UserError("document must have a safe name", repr(document.name), "decode to one .txt file")
            path, number = folder / name, 1
            while str(path).casefold() in taken or path.exists():
                number += 1
                path = folder / name.with_name(f"{name.stem}-{number}{name.suffix}")
            taken.add(str(path).casefold())
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as file:
                file.writelines(document.pieces)
    return count


def verify_text(folder: str | Path, tokenizer: TextTokenizer, source: TextSource | None) -> dict[str, Any]:
    """Prove that a cache of text is whole, that it decodes to what was read, and that the source is still that.

    Returns:
        What `ggm_image.data.token_cache.verify.verify` returns, and the number of ``documents`` and ``bytes``.
    """
    cache = TokenCache.open(folder)
    check_is_text(cache)
    proof = verify(folder)
    known = cache.manifest.source["sha256"]
    held = Fingerprint()
    for document in documents(cache, tokenizer):
        held.add(document)
    if held.hexdigest() != known:
        raise UserError("cache must decode to the text that was encoded", folder, "remove it and encode again")
    if source is not None and fingerprint(source).hexdigest() != known:
        fix = "encode it again with --overwrite, or to another folder"
        raise UserError("text is not what was encoded", source.description, fix)
    return {**proof, "content": source is not None, "documents": held.documents, "bytes": held.bytes}
