"""The specification of a tokenizer, read from its ``config.yaml`` without opening the weights."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ggm_image.errors import UserError, explained, suggest
from ggm_image.io.download import cache_dir
from ggm_image.io.yaml import read_yaml
from ggm_image.tokenizers.base import Architecture
from ggm_image.tokenizers.vq.families import FAMILIES
from ggm_image.validation import build

WEIGHTS = "model.safetensors"
_COMPARE = "compare it with tokenizers/cifar10-f4-4096/config.yaml"


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """A tokenizer by its config.

    Attributes:
        name: what token caches and models call it.
        family: a key of `families.FAMILIES`.
        sizes: that family's dataclass.
        file: name of the weights file.
        sha256: of the weights file, as its publisher gives it; empty where no publisher does.
        identity: SHA-256 of the file that it was converted from without loss, or whose encoder and codes it has: what
            token caches know it by.
        decoder: SHA-256 of the file in which a decoder of its own was first written; empty for one with the original's.
        size: bytes of what is downloaded, as its publisher gives them; None where unknown.
        urls: where the file can be had, the publisher's first.
        member: the file to take out of the zip that is downloaded; empty where it is no zip.
        data: what it was trained on.
        reported: figures by name, as measured by the publisher.
    """

    folder: Path
    name: str
    family: str
    sizes: Architecture
    file: str = WEIGHTS
    sha256: str = ""
    identity: str = ""
    decoder: str = ""
    size: int | None = None
    urls: list[str] = field(default_factory=list)
    member: str = ""
    page: str = ""
    licence: str = "unknown"
    data: str = ""
    reported: dict[str, Any] = field(default_factory=dict)

    @property
    def codebook_size(self) -> int:
        """V."""
        return self.sizes.codebook_size

    @property
    def downscale(self) -> int:
        """Pixels along one side of a cell."""
        return self.sizes.downscale

    @property
    def image_size(self) -> int:
        """Pixels along one side of the square images that it was trained on."""
        return self.sizes.image_size

    @property
    def grid(self) -> int:
        """Cells along one side of such an image."""
        return self.image_size // self.downscale

    @property
    def architecture(self) -> dict[str, Any]:
        """``sizes`` as plain values, as in config.yaml."""
        return asdict(self.sizes)  # type: ignore[call-overload]

    @property
    def weights(self) -> Path:
        """Where the weights lie: beside the config, else in the cache; there may be nothing there yet."""
        beside = self.folder / self.file
        return beside if beside.is_file() or not self.page else cache_dir() / "tokenizers" / self.name / self.file

    @staticmethod
    def read(folder: Path) -> "TokenizerSpec":
        """Read ``config.yaml`` of a tokenizer folder."""
        path = folder / "config.yaml"
        if not path.is_file():
            raise UserError("a tokenizer is a folder with config.yaml", f"no {path}", "give a tokenizer folder")
        entries = read_yaml(path, "must describe a tokenizer", _COMPARE)
        with explained(f"{path} must describe a tokenizer", _COMPARE):
            # Early configs have no family: all of their tokenizers were taming's.
            weights, family = entries["weights"], str(entries.get("family") or "taming")
            return TokenizerSpec(
                folder=folder,
                name=str(entries["name"]),
                family=family,
                sizes=read_sizes(family, entries["architecture"], where=folder),
                file=_file_name(weights.get("file") or WEIGHTS),
                # Empty where the publisher states none; the hash of the first download is then used.
                sha256=str(weights["sha256"] or ""),
                identity=str(weights.get("identity") or ""),
                decoder=str(weights.get("decoder") or ""),
                size=int(weights["bytes"]) if weights.get("bytes") else None,
                urls=[str(url) for url in (weights.get("url"), *(weights.get("mirrors") or [])) if url],
                member=str(weights.get("member") or ""),
                page=str(entries.get("page") or ""),
                licence=str(entries.get("licence", "unknown")),
                data=str(entries.get("data") or ""),
                reported=dict(entries.get("reported") or {}),
            )


def _file_name(name: Any) -> str:
    if Path(str(name)).name != str(name):
        raise ValueError(f"weights.file must be a file's name, got {name}")
    return str(name)


def read_sizes(family: str, architecture: Mapping[str, Any], *, where: Path) -> Architecture:
    """A family's dataclass from the entries of an architecture."""
    if family not in FAMILIES:
        fix = suggest(family, FAMILIES, f"known: {', '.join(sorted(FAMILIES))}", cutoff=0.3)
        raise UserError("no such family of tokenizers", f"{family} in {where}", fix)
    try:
        return build(FAMILIES[family].config, architecture)
    except UserError as error:
        got = f"{error.what}, got {error.got!r:.100}"
        fix = f"correct config.yaml in {where}"
        raise UserError(f"the architecture must be one of family {family}", got, fix) from error
