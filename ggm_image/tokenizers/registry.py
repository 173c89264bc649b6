"""Tokenizers by name or by path: shipped, known and downloaded once, or published by somebody and on disk.

A tokenizer folder holds ``config.yaml`` (family, architecture, where the weights are from, hash, licence) and the
weights: beside it, or in the user's cache. What others publish is told apart by `published`.
"""

import contextlib
import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ggm_image.downloads import cache_dir, download
from ggm_image.errors import UserError
from ggm_image.files import sha256_file, write_text
from ggm_image.resources import resource_dir
from ggm_image.tokenizers.base import Architecture, Tokenizer
from ggm_image.tokenizers.checkpoints import load_stored, open_weights
from ggm_image.tokenizers.families import FAMILIES
from ggm_image.tokenizers.published import is_published, read_published
from ggm_image.tokenizers.unpacking import unpack_member

WEIGHTS = "model.safetensors"
_WRONG = (AttributeError, LookupError, TypeError, ValueError)


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """What is known of a tokenizer before its weights are opened.

    Attributes:
        folder: where its config lies.
        name: what token caches and models call it.
        family: a key of `families.FAMILIES`.
        codebook_size: V.
        downscale: pixels along one side of a cell.
        image_size: pixels along one side of the images it was trained on.
        architecture: the entries of its family's config.
        file: name of the weights file.
        sha256: of the weights file, as its publisher gives it; empty where no publisher does.
        identity: SHA-256 of the file that it was converted from without loss: what token caches know it by.
        size: bytes of what is downloaded, likewise; None where unknown.
        urls: where the file can be had, the publisher's first.
        member: the file to take out of the zip that is downloaded; empty where it is no zip.
        page: where it is published.
        licence: of the weights.
        data: what it was trained on.
        reported: figures by name, as measured by the publisher.
    """

    folder: Path
    name: str
    family: str
    codebook_size: int
    downscale: int
    image_size: int
    architecture: dict[str, Any]
    file: str = WEIGHTS
    sha256: str = ""
    identity: str = ""
    size: int | None = None
    urls: list[str] = field(default_factory=list)
    member: str = ""
    page: str = ""
    licence: str = "unknown"
    data: str = ""
    reported: dict[str, Any] = field(default_factory=dict)

    @property
    def weights(self) -> Path:
        """Where the weights lie: beside the config, else in the cache; there may be nothing there yet."""
        beside = self.folder / self.file
        return beside if beside.is_file() or not self.page else cache_dir() / "tokenizers" / self.name / self.file

    @property
    def grid(self) -> int:
        """Cells along one side of an image of ``image_size``."""
        return self.image_size // self.downscale

    @staticmethod
    def read(folder: Path) -> "TokenizerSpec":
        """Read ``config.yaml`` of a tokenizer folder.

        Raises:
            UserError: if the folder or the file is missing, is no YAML, or lacks an entry.
        """
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
        from yaml import YAMLError

        path = folder / "config.yaml"
        if not path.is_file():
            raise UserError("a tokenizer is a folder with config.yaml", f"no {path}", "give a tokenizer folder")
        try:
            entries: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
            weights = entries["weights"]
            return _spec(
                folder=folder,
                name=str(entries["name"]),
                family=str(entries.get("family") or "taming"),
                architecture=entries["architecture"],
                file=_file_name(weights.get("file") or WEIGHTS),
                sha256=str(weights["sha256"] or ""),
                identity=str(weights.get("identity") or ""),
                size=int(weights["bytes"]) if weights.get("bytes") else None,
                urls=[str(url) for url in (weights.get("url"), *(weights.get("mirrors") or [])) if url],
                member=str(weights.get("member") or ""),
                page=str(entries.get("page") or ""),
                licence=str(entries.get("licence", "unknown")),
                data=str(entries.get("data") or ""),
                reported=dict(entries.get("reported") or {}),
            )
        except UserError:
            raise
        except (*_WRONG, OmegaConfBaseException, YAMLError) as error:
            raise UserError(
                f"{path} must describe a tokenizer",
                f"{type(error).__name__}: {error}",
                "compare it with tokenizers/cifar10-f4/config.yaml",
            ) from error


def _file_name(name: Any) -> str:
    if Path(str(name)).name != str(name):
        raise ValueError(f"weights.file must be a file's name, got {name}")
    return str(name)


def _spec(*, folder: Path, name: str, family: str, architecture: Mapping[str, Any], **others: Any) -> TokenizerSpec:
    config = _architecture(family, architecture, where=str(folder))
    return TokenizerSpec(
        folder=folder,
        name=name,
        family=family,
        architecture=dict(architecture),
        codebook_size=config.codebook_size,
        downscale=config.downscale,
        image_size=config.image_size,
        **others,
    )


def _architecture(family: str, architecture: Mapping[str, Any], *, where: str) -> Architecture:
    """The typed sizes of an architecture; UserError for an unknown family or a wrong entry."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if family not in FAMILIES:
        near = difflib.get_close_matches(family, FAMILIES, n=1, cutoff=0.3) or sorted(FAMILIES)
        raise UserError("no such family of tokenizers", f"{family} in {where}", f"known: {', '.join(near)}")
    try:
        schema = OmegaConf.structured(FAMILIES[family].config)
        config: Architecture = OmegaConf.to_object(OmegaConf.merge(schema, dict(architecture)))
        return config
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        raise UserError(
            f"the architecture must be one of family {family}",
            f"{type(error).__name__}: {error}",
            f"mend config.yaml in {where}",
        ) from error


def architecture_entries(spec: TokenizerSpec) -> dict[str, Any]:
    """The architecture with every default written out, as plain values."""
    return asdict(_architecture(spec.family, spec.architecture, where=str(spec.folder)))  # type: ignore[call-overload]


def tokenizer_specs() -> list[TokenizerSpec]:
    """Every tokenizer that is shipped or known, by name."""
    return [TokenizerSpec.read(folder) for folder in _known().values()]


def _known() -> dict[str, Path]:
    """Folders of the known tokenizers by name: each is called as its tokenizer is."""
    return {path.parent.name: path.parent for path in sorted(resource_dir("tokenizers").glob("*/config.yaml"))}


def find_tokenizer(name_or_path: str | Path) -> TokenizerSpec:
    """The tokenizer of a known name, of a folder, or of a published file.

    Raises:
        UserError: if there is none; names the nearest known ones.
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
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.3) or sorted(known)
    raise UserError(
        "no such tokenizer, neither a known name nor a folder or file",
        f"got {name!r}",
        f"known: {', '.join(near)}",
    )


def _is_ours(path: Path) -> bool:
    """Whether a folder's config.yaml is a tokenizer's of ours: latent-diffusion's is called so too."""
    config = path / "config.yaml"
    return config.is_file() and not (is_published(path) and "\nmodel:" in f"\n{config.read_text(errors='replace')}")


def published_spec(path: Path, *, like: str = "", unit_range: bool | None = None) -> TokenizerSpec:
    """The spec of what somebody published.

    Args:
        path: a weights file or a folder.
        like: name of the known tokenizer that it is; empty to go by its config or by its shapes.
        unit_range: as in `published.read_published`.
    """
    if like:
        known = find_tokenizer(like)
        found = read_published(path).weights if path.is_dir() else path
        return _spec(
            folder=found.parent,
            name=known.name,
            family=known.family,
            architecture=known.architecture,
            file=found.name,
            sha256=known.sha256,
            licence=known.licence,
            data=known.data,
            reported=known.reported,
        )
    published = read_published(path, unit_range=unit_range)
    return _spec(
        folder=published.weights.parent,
        name=published.name,
        family=published.family,
        architecture=published.architecture,
        file=published.weights.name,
    )


def load_tokenizer(name_or_path: str | Path, *, device: str = "cpu") -> Tokenizer:
    """A tokenizer, ready to encode and decode.

    Args:
        name_or_path: a known tokenizer's name, a folder with ``config.yaml`` and weights, or what somebody
            published: a checkpoint or its folder. The weights of a known one are downloaded at the first use.
        device: where it shall live.

    Returns:
        The tokenizer in evaluation mode, without gradients.

    Raises:
        UserError: if it is not there, its weights do not fit or are not finite, or their hash is another.
    """
    return load_spec(find_tokenizer(name_or_path), device=device)


def load_spec(spec: TokenizerSpec, *, device: str = "cpu") -> Tokenizer:
    """As `load_tokenizer`, of a spec."""
    weights = fetch_weights(spec)
    sha256 = _checked_hash(spec, weights)
    with torch.device("meta"):
        tokenizer = build_tokenizer(spec, sha256=spec.identity or sha256)
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
    """The untrained module of a specification.

    Raises:
        UserError: for an architecture that its family cannot build.
    """
    config = _architecture(spec.family, spec.architecture, where=str(spec.folder))
    try:
        return FAMILIES[spec.family].network(config, name=spec.name, sha256=sha256)
    except (AssertionError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise UserError(
            f"the architecture of tokenizer {spec.name} must be one of family {spec.family}",
            f"{type(error).__name__}: {error}",
            f"mend {spec.folder / 'config.yaml'}",
        ) from error
