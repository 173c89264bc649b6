"""Tokenizers by name or by path: a folder of ``config.yaml`` and ``model.safetensors``."""

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggm_image.errors import UserError
from ggm_image.files import sha256_file
from ggm_image.resources import resource_dir
from ggm_image.tokenizers.base import Tokenizer
from ggm_image.weights import load_weights

WEIGHTS = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec:
    """What a tokenizer folder says of itself.

    Attributes:
        folder: where it lies.
        name: what token caches and models call it.
        codebook_size: V.
        downscale: pixels along one side of a cell.
        image_size: pixels along one side of the images it was trained on.
        architecture: taming's ``ddconfig``, ``n_embed`` and ``embed_dim``.
        sha256: of the weights file, as its publisher gives it.
        licence: of the weights.
        reported: figures by name, as measured by the publisher.
    """

    folder: Path
    name: str
    codebook_size: int
    downscale: int
    image_size: int
    architecture: dict[str, Any]
    sha256: str
    licence: str
    reported: dict[str, Any]

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS

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
            architecture = entries["architecture"]
            return TokenizerSpec(
                folder=folder,
                name=str(entries["name"]),
                codebook_size=int(architecture["n_embed"]),
                downscale=2 ** (len(architecture["ddconfig"]["ch_mult"]) - 1),
                image_size=int(architecture["ddconfig"]["resolution"]),
                architecture=architecture,
                sha256=str(entries["weights"]["sha256"]),
                licence=str(entries.get("licence", "unknown")),
                reported=dict(entries.get("reported") or {}),
            )
        except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} must describe a tokenizer",
                f"{type(error).__name__}: {error}",
                "compare it with tokenizers/cifar10-f4/config.yaml",
            ) from error


def tokenizer_specs() -> list[TokenizerSpec]:
    """Every tokenizer that is shipped, by name."""
    folders = sorted(p.parent for p in resource_dir("tokenizers").glob("*/config.yaml"))
    return [TokenizerSpec.read(folder) for folder in folders]


def find_tokenizer(name_or_path: str | Path) -> TokenizerSpec:
    """The tokenizer folder of a shipped name or of a path.

    Raises:
        UserError: if there is none; names the nearest shipped ones.
    """
    path = Path(name_or_path)
    specs = {spec.name: spec for spec in tokenizer_specs()}
    # A folder of anything else must not hide the tokenizer of that name.
    if path.is_dir() and ((path / "config.yaml").is_file() or str(name_or_path) not in specs):
        return TokenizerSpec.read(path)
    if str(name_or_path) in specs:
        return specs[str(name_or_path)]
    near = difflib.get_close_matches(str(name_or_path), specs, n=3, cutoff=0.3) or sorted(specs)
    raise UserError(
        "no such tokenizer, neither a shipped name nor a folder",
        f"got {str(name_or_path)!r}",
        f"known: {', '.join(near)}",
    )


def load_tokenizer(name_or_path: str | Path, *, device: str = "cpu") -> Tokenizer:
    """A tokenizer, ready to encode and decode.

    Args:
        name_or_path: a shipped tokenizer's name, or a folder with ``config.yaml`` and ``model.safetensors``.
        device: where it shall live.

    Returns:
        The tokenizer in evaluation mode, without gradients.

    Raises:
        UserError: if it is not there, its weights do not fit or are not finite, or their hash is another.
    """
    spec = find_tokenizer(name_or_path)
    if not spec.weights.is_file():
        raise UserError("the tokenizer has no weights", f"no {spec.weights}", "train it, or copy the file there")
    sha256 = sha256_file(spec.weights)
    if spec.sha256 and sha256 != spec.sha256:
        raise UserError(
            f"{spec.weights} must have SHA-256 {spec.sha256[:16]}...",
            f"got {sha256[:16]}...",
            "the file is damaged or not the one that config.yaml names: copy it again",
        )
    tokenizer = build_tokenizer(spec, sha256=sha256)
    load_weights(tokenizer, spec.weights)
    return tokenizer.to(device).eval().requires_grad_(False)


def build_tokenizer(spec: TokenizerSpec, *, sha256: str = "") -> Tokenizer:
    """The untrained module of a specification.

    Raises:
        UserError: for an architecture that taming cannot build.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from ggm_image.tokenizers.vqgan import VQGAN, VQGANConfig

    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(VQGANConfig), spec.architecture))
        assert isinstance(config, VQGANConfig)
        return VQGAN(config, name=spec.name, sha256=sha256)
    except (OmegaConfBaseException, AssertionError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(
            f"the architecture of tokenizer {spec.name} must be taming's",
            f"{type(error).__name__}: {error}",
            f"mend {spec.folder / 'config.yaml'}",
        ) from error
