"""Decode a token cache to images."""

import os
from pathlib import Path

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from ggm_image.data.encode import fitting_batch
from ggm_image.data.token_cache.manifest import Manifest
from ggm_image.data.token_cache.reader import TokenCache
from ggm_image.errors import UserError
from ggm_image.image.io import to_pil
from ggm_image.image.preprocess import to_uint8
from ggm_image.io.files import atomic_folder
from ggm_image.runtime.numerics import exact_arithmetic
from ggm_image.runtime.progress import progress
from ggm_image.tokenizers import registry
from ggm_image.tokenizers.base import Tokenizer


def decode_batch(
    tokenizer: Tokenizer, tokens: Int[Tensor, "n rows columns"], batch_size: int, device: str | torch.device
) -> UInt8[Tensor, "n 3 h w"]:
    """Images of at most ``batch_size`` token grids, computed in a batch of exactly that size."""
    batch = tokens.new_zeros(batch_size, *tokens.shape[1:])
    batch[: len(tokens)] = tokens
    with exact_arithmetic():
        return to_uint8(tokenizer.decode(batch.to(device)))[: len(tokens)].cpu()


def check_tokenizer(cache: TokenCache, tokenizer: Tokenizer) -> None:
    """Raise UserError unless ``tokenizer`` made the tokens of ``cache``."""
    manifest = cache.manifest
    if tokenizer.sha256 != manifest.tokenizer_sha256:
        raise UserError(
            "token cache must be decoded with the tokenizer that made it",
            f"made with {manifest.tokenizer_name} {manifest.tokenizer_sha256[:12]}, "
            f"got {tokenizer.name} {tokenizer.sha256[:12]}",
            "point --tokenizer to the right one",
        )


def tokenizer_of(manifest: Manifest) -> str:
    """Name or path of the tokenizer that a cache names: first where it was found then, then by its name."""
    if manifest.tokenizer_source and Path(manifest.tokenizer_source).exists():
        return manifest.tokenizer_source
    if manifest.tokenizer_name in {spec.name for spec in registry.tokenizer_specs()}:
        return manifest.tokenizer_name
    raise UserError(
        "the tokenizer of this cache was not found",
        f"{manifest.tokenizer_name}, then at {manifest.tokenizer_source or 'an unnamed place'}",
        "point --tokenizer to its folder or file",
    )


def decode(
    cache: TokenCache,
    out: str | os.PathLike[str],
    tokenizer: Tokenizer,
    *,
    batch_size: int | None = None,
    device: str | torch.device = "cpu",
) -> int:
    """Write every row of ``cache`` as ``000000.png ...``, in class folders where the cache has classes.

    The folder is whole or not there: it is filled under a temporary name.

    Args:
        out: a folder that does not exist or is empty.
        tokenizer: the one that made the tokens, on ``device`` already.
        batch_size: grids a forward pass; `fitting_batch` by default.

    Raises:
        UserError: another tokenizer, a folder that is not empty, or a class name that is no folder name.
    """
    check_tokenizer(cache, tokenizer)
    names = cache.manifest.class_names
    for name in names:
        if name in ("", ".", "..") or any(c in name for c in "/\\\0"):
            raise UserError("class names must be folder names", repr(name), "correct class_names in manifest.json")
    batch_size = fitting_batch(device, cache.manifest.image_size) if batch_size is None else batch_size
    starts = range(0, len(cache), batch_size)
    with atomic_folder(out) as folder:
        for start in progress(starts, total=len(starts), unit="batch", label="decode"):
            rows = range(start, min(start + batch_size, len(cache)))
            images = decode_batch(tokenizer, cache.tokens(rows), batch_size, device)
            for row, label, image in zip(rows, cache.labels(rows).tolist(), images, strict=True):
                place = folder / names[label] if 0 <= label < len(names) else folder
                place.mkdir(exist_ok=True)
                # Not save_png: the folder as a whole is what must be atomic.
                to_pil(image).save(place / f"{row:06d}.png")
    return len(cache)
