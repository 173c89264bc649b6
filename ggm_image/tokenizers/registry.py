"""Find tokenizers by name or path: shipped ones, known ones that are downloaded once, and published ones on disk.

A tokenizer folder holds ``config.yaml`` (family, architecture, where the weights are from, hash, licence) and the
weights: beside it, or in the user's cache. `checkpoints.detect` recognises the formats that others publish.
"""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Literal, overload

import torch

from ggm_image.errors import UserError, explained, suggest
from ggm_image.io.download import cache_dir, download
from ggm_image.io.files import sha256_file, write_text
from ggm_image.io.hub import is_repository, snapshot
from ggm_image.io.resources import resource_dir
from ggm_image.runtime.devices import choose_device
from ggm_image.runtime.meta import shapes_only
from ggm_image.runtime.numerics import isolate
from ggm_image.tokenizers.base import Tokenizer
from ggm_image.tokenizers.bpe import BPETokenizer, find_tokenizer_file
from ggm_image.tokenizers.checkpoints.detect import is_published, read_published
from ggm_image.tokenizers.checkpoints.reader import load_stored, open_weights
from ggm_image.tokenizers.checkpoints.unpacking import unpack_member
from ggm_image.tokenizers.spec import TokenizerSpec, read_sizes
from ggm_image.tokenizers.text import TEXT_TOKENIZERS, ByteTokenizer, TextTokenizer
from ggm_image.tokenizers.vq.families import FAMILIES


def tokenizer_specs() -> list[TokenizerSpec]:
    """Every tokenizer that is shipped or known, by name."""
    return [TokenizerSpec.read(folder) for folder in _known().values()]


def _known() -> dict[str, Path]:
    """Folders of the known tokenizers by name: each is called as its tokenizer is."""
    return {path.parent.name: path.parent for path in sorted(resource_dir("tokenizers").glob("*/config.yaml"))}


def find_tokenizer(name_or_path: str | Path) -> TokenizerSpec:
    """The tokenizer of a known name, of a folder, of a published file, or of ``owner/name`` on the Hub.

    A repository on the Hub is a tokenizer's folder, or a model's that has one in ``tokenizer/``;
    ``owner/name@revision`` names a branch, tag or commit.

    Raises:
        UserError: if there is none; names the nearest known ones. For one on the Hub as `ggm_image.io.hub.snapshot`.
    """
    path = Path(name_or_path)
    known, name = _known(), str(name_or_path)
    if _is_ours(path):
        return TokenizerSpec.read(path)
    # A folder of anything else must not hide the tokenizer of that name.
    if name in known:
        return TokenizerSpec.read(known[name])
    if path.is_file() or is_published(path):
        return published_spec(path)
    if path.is_dir():
        return TokenizerSpec.read(path)
    if isinstance(name_or_path, str) and is_repository(name):
        found = snapshot(name).folder
        inside = found / "tokenizer"
        return TokenizerSpec.read(inside if (inside / "config.yaml").is_file() else found)
    raise UserError(
        "no such tokenizer, neither a known name nor a folder or file",
        f"got {name!r}",
        suggest(name, [*known, *TEXT_TOKENIZERS], f"known: {', '.join(sorted(known))}", n=3, cutoff=0.3),
    )


def _is_ours(path: Path) -> bool:
    """Whether a folder's config.yaml is a tokenizer's of ours: latent-diffusion's is called so too."""
    config = path / "config.yaml"
    return config.is_file() and not (is_published(path) and "\nmodel:" in f"\n{config.read_text(errors='replace')}")


def published_spec(path: Path, *, like: str = "", unit_range: bool | None = None) -> TokenizerSpec:
    """The spec of a published tokenizer.

    Args:
        like: name of the known tokenizer that it is; empty to go by its config or by its shapes.
        unit_range: as in `detect.read_published`.
    """
    if like:
        known = find_tokenizer(like)
        weights = read_published(path).weights if path.is_dir() else path
        return replace(known, folder=weights.parent, file=weights.name, urls=[], page="", member="", size=None)
    found = read_published(path, unit_range=unit_range)
    return TokenizerSpec(
        folder=found.weights.parent,
        name=found.name,
        family=found.family,
        sizes=read_sizes(found.family, found.architecture, where=found.weights.parent),
        file=found.weights.name,
    )


def is_text_tokenizer(name_or_path: str | Path) -> bool:
    """Whether a name is that of a tokenizer of text, which no folder or file of that name hides, or a path of one."""
    return str(name_or_path) in TEXT_TOKENIZERS or find_tokenizer_file(name_or_path) is not None


def load_text_tokenizer(name_or_path: str | Path) -> TextTokenizer:
    """A tokenizer of text: "bytes", or a saved byte-level BPE.

    Args:
        name_or_path: a name, a ``tokenizer.json``, or a folder that has one.

    Raises:
        UserError: it is one of images, or `BPETokenizer` cannot use the file.
    """
    if str(name_or_path) in TEXT_TOKENIZERS:
        return TEXT_TOKENIZERS[str(name_or_path)]()
    file = find_tokenizer_file(name_or_path)
    if file is None:
        fix = f"use {', '.join(TEXT_TOKENIZERS)}, or a tokenizer.json"
        raise UserError("the tokenizer must be one of text", name_or_path, fix)
    return BPETokenizer(file)


@overload
def load_tokenizer(  # type: ignore[overload-overlap]
    name_or_path: Literal["bytes"], *, device: str | torch.device = ...
) -> ByteTokenizer: ...


@overload
def load_tokenizer(name_or_path: str | Path, *, device: str | torch.device = ...) -> Tokenizer: ...


def load_tokenizer(name_or_path: str | Path, *, device: str | torch.device = "cpu") -> Tokenizer | TextTokenizer:
    """A tokenizer, ready to encode and decode: a `Tokenizer` of images, or a `TextTokenizer`.

    A type checker takes it for one of images unless the name is the literal "bytes".

    Args:
        name_or_path: as in `load_image_tokenizer`, or as in `load_text_tokenizer`.
        device: where to put it, see `choose_device`. Those of text have no weights, and work on the CPU.

    Raises:
        UserError: as `load_image_tokenizer` or `load_text_tokenizer`.
    """
    if is_text_tokenizer(name_or_path):
        return load_text_tokenizer(name_or_path)
    return load_image_tokenizer(name_or_path, device=device)


def load_image_tokenizer(name_or_path: str | Path, *, device: str | torch.device = "cpu") -> Tokenizer:
    """A tokenizer of images, ready to encode and decode.

    Args:
        name_or_path: a known tokenizer's name, a folder with ``config.yaml`` and weights, a published tokenizer (a
            checkpoint or its folder), or ``owner/name`` of a tokenizer or model on the Hub. The weights of a known one
            are downloaded at the first use.
        device: where to put it, see `choose_device`.

    Returns:
        The tokenizer in evaluation mode, without gradients.

    Raises:
        UserError: if it is not there, its weights do not fit or are not finite, their hash is another, or there is no
            such device.
    """
    if is_text_tokenizer(name_or_path):
        raise UserError("the tokenizer must be one of images", f"{name_or_path} is of text", "see ggm-image tokenizers")
    return load_spec(find_tokenizer(name_or_path), device=device)


@isolate
def load_spec(spec: TokenizerSpec, *, device: str | torch.device = "cpu") -> Tokenizer:
    """As `load_tokenizer`, of a spec."""
    device = choose_device(device)
    weights = fetch_weights(spec)
    sha256 = _checked_hash(spec, weights)
    with shapes_only():
        tokenizer = build_tokenizer(spec, sha256=spec.identity or sha256)
    tokenizer.decoder_sha256 = spec.decoder
    with open_weights(weights) as tensors:
        load_stored(tokenizer, tensors, FAMILIES[spec.family].our_names(tensors), weights)
    return tokenizer.to(device).eval().requires_grad_(False)


def fetch_weights(spec: TokenizerSpec) -> Path:
    """The weights file, downloaded if it is a known tokenizer's and not there yet."""
    weights = spec.weights
    if weights.is_file():
        return weights
    if not spec.page:
        raise UserError("the tokenizer has no weights", f"no {weights}", "train it, or copy the file there")
    if not spec.urls:
        raise UserError(
            f"the weights of {spec.name} have no address to download them from",
            f"published at {spec.page}",
            f"fetch them there and put the file at {weights}",
        )
    if spec.member:
        archive = weights.with_name(weights.name + ".zip")
        download(archive, spec.urls, size=spec.size, label=spec.name)
        unpack_member(archive, spec.member, weights)
        archive.unlink()
    else:
        download(weights, spec.urls, size=spec.size, sha256=spec.sha256, label=spec.name)
    return weights


def _checked_hash(spec: TokenizerSpec, weights: Path) -> str:
    """SHA-256 of the weights: the publisher's, or what it was when they were first seen in the cache."""
    sha256 = sha256_file(weights)
    pin = weights.with_name(weights.name + ".sha256")
    pinned = ""
    if not spec.sha256 and weights.parent == cache_dir() / "tokenizers" / spec.name:
        pinned = pin.read_text(encoding="ascii", errors="replace").strip() if pin.is_file() else ""
        if not pinned:
            with contextlib.suppress(OSError):  # a cache that is shared and read-only
                write_text(pin, sha256 + "\n")
    wanted = spec.sha256 or pinned
    if wanted and sha256 != wanted:
        since = f", as on the first use (remove {pin} if the change is meant)" if pinned else ""
        raise UserError(
            f"{weights} must have SHA-256 {wanted[:16]}...{since}",
            f"got {sha256[:16]}...",
            "the file is damaged or not the one that config.yaml names: copy it again",
        )
    return sha256


def build_tokenizer(spec: TokenizerSpec, *, sha256: str = "") -> Tokenizer:
    """The untrained module of a specification."""
    what = f"the architecture of tokenizer {spec.name} must be one of family {spec.family}"
    with explained(what, f"correct {spec.folder / 'config.yaml'}"):
        return FAMILIES[spec.family].network(spec.sizes, name=spec.name, sha256=sha256)
