"""Detect the family, the sizes and the weights file of a published tokenizer from its files.

| what is given | family |
| --- | --- |
| ``.ckpt`` with its ``.yaml`` (``model.target``), or the folder of both as in taming's ``logs/`` | taming, gumbel |
| a folder with ``config.json`` (``_class_name``), or a pipeline with one in ``vqvae/`` | diffusers, maskgit |
| a ``.pt``, ``.bin``, ``.ckpt`` or ``.safetensors`` alone | by the shapes of what is in it |
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ggm_image.errors import UserError, explained
from ggm_image.io.files import check_plain
from ggm_image.tokenizers.checkpoints.reader import open_weights
from ggm_image.tokenizers.vq import diffusers, maskgit
from ggm_image.tokenizers.vq.families import FAMILIES

SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".safetensors")
_IN_FOLDERS = (
    "diffusion_pytorch_model.safetensors", "model.safetensors", "pytorch_model.safetensors",
    "diffusion_pytorch_model.bin", "pytorch_model.bin",
)  # fmt: skip
_TARGETS = {"GumbelVQ": "gumbel", "VQModel": "taming", "VQModelInterface": "taming", "VQNoDiscModel": "taming"}
_MAX_CONFIG = 1 << 20  # bytes; a config has some hundreds


@dataclass(frozen=True, kw_only=True)
class Published:
    """A published tokenizer on disk.

    Attributes:
        architecture: entries of that family's config.
        name: what it may be called: the file's or the folder's name.
    """

    family: str
    architecture: dict[str, Any]
    weights: Path
    name: str


def is_published(path: Path) -> bool:
    """Whether a path looks like a published tokenizer: a weights file, or a folder with a config in another layout."""
    if path.is_file():
        return path.suffix in SUFFIXES
    return path.is_dir() and (_config_json(path) is not None or bool(_checkpoints(path)))


def read_published(path: Path, *, unit_range: bool | None = None) -> Published:
    """Family, sizes and weights file of a published tokenizer.

    Args:
        unit_range: for diffusers' folders, whether the network's pixels lie in [0, 1]; None to guess.
    """
    if path.is_file():
        config = path.parent / "config.json"
        if path.name in _IN_FOLDERS and config.is_file():
            return _with_json(config, path, unit_range)
        yaml = _yaml_of(path)
        return _with_yaml(path, yaml) if yaml else _by_shapes(path)
    found = _config_json(path)
    if found is not None:
        weights = [found.parent / name for name in _IN_FOLDERS if (found.parent / name).is_file()]
        if not weights:
            raise UserError(
                "the tokenizer has no weights", f"no {found.parent / _IN_FOLDERS[0]}", "copy the file there"
            )
        return _with_json(found, weights[0], unit_range)
    files = _checkpoints(path)
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise UserError("a folder must hold one checkpoint", f"{path}: {names}", "give the file itself")
    return read_published(files[0], unit_range=unit_range)


def _checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of a folder, of taming's layout of a run too; ``last.ckpt`` before all others."""
    for place in (folder, folder / "checkpoints", folder / "ckpts"):
        files = sorted(file for file in place.glob("*") if file.suffix in SUFFIXES and file.is_file())
        last = [file for file in files if file.stem in ("last", "model")]
        if files:
            return last[:1] or files
    return []


def _yaml_of(weights: Path) -> Path | None:
    """The config beside a checkpoint: of the same name, or the only one here or in ``configs/``."""
    twin = weights.with_suffix(".yaml")
    if twin.is_file():
        return twin
    for place in (weights.parent, weights.parent / "configs", weights.parent.parent / "configs"):
        found = [file for file in sorted(place.glob("*.yaml")) if file.is_file() and _model_entry(file) is not None]
        if len(found) == 1:
            return found[0]
    return None


def _load_yaml(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(_text(path))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{path} must be YAML", str(error), "copy it again") from error


def _text(path: Path) -> str:
    check_plain(path)
    if path.stat().st_size > _MAX_CONFIG:
        raise UserError(f"{path} must be a config", f"{path.stat().st_size} bytes", "give the config itself")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} must be text", str(error), "copy it again") from error


def _model_entry(path: Path) -> Mapping[str, Any] | None:
    """``model`` of a training config; of a transformer or diffusion model, the first stage in it."""
    config = _load_yaml(path)
    model = config.get("model") if isinstance(config, dict) else None
    if not isinstance(model, dict) or "target" not in model:
        return None
    params = model.get("params")
    first = params.get("first_stage_config") if isinstance(params, dict) else None
    return first if isinstance(first, dict) else model


def _with_yaml(weights: Path, yaml: Path) -> Published:
    model = _model_entry(yaml)
    if model is None:
        return _by_shapes(weights)
    target = str(model.get("target", "")).split(".")[-1]
    fix = "taming's VQModel and GumbelVQ and latent-diffusion's VQModel can be loaded"
    with explained(f"{yaml} must be the config of a VQGAN", fix, got=target or "no target"):
        params: Any = model["params"]
        given = params["ddconfig"]
        fields = ("ch", "num_res_blocks", "resolution", "z_channels", "in_channels", "out_ch")
        ddconfig: dict[str, Any] = {key: int(given[key]) for key in fields}
        for key in ("ch_mult", "attn_resolutions"):
            ddconfig[key] = [int(n) for n in given[key]]
        ddconfig["attn_type"] = str(given.get("attn_type", "vanilla"))
        if given.get("double_z") or given.get("tanh_out") or params.get("remap"):
            raise ValueError("double_z, tanh_out and remap are not supported")
        architecture = {"n_embed": int(params["n_embed"]), "embed_dim": int(params["embed_dim"]), "ddconfig": ddconfig}
        family = _TARGETS[target]
    return Published(family=family, architecture=architecture, weights=weights, name=_name(weights))


def _config_json(folder: Path) -> Path | None:
    for place in (folder, folder / "vqvae"):
        if (place / "config.json").is_file():
            return place / "config.json"
    return None


def _with_json(path: Path, weights: Path, unit_range: bool | None) -> Published:
    fix = "VQModel and MaskGitVQGAN can be loaded"
    with explained(f"{path} must be the config of a tokenizer", fix):
        config: Any = json.loads(_text(path))
        kind = config["_class_name"]
        if kind == "VQModel":
            family, architecture = "diffusers", diffusers.from_config(config, unit_range=unit_range)
        elif kind == "MaskGitVQGAN":
            family, architecture = "maskgit", maskgit.from_config(config)
        else:
            raise ValueError(f"_class_name {kind}")
    return Published(family=family, architecture=architecture, weights=weights, name=path.parent.resolve().name)


def _by_shapes(weights: Path) -> Published:
    with open_weights(weights) as tensors:
        shapes = {name: tensor.shape for name, tensor in tensors.items()}
    try:
        for family in FAMILIES.values():
            architecture = family.from_shapes(shapes)
            if architecture is not None:
                return Published(family=family.name, architecture=architecture, weights=weights, name=_name(weights))
    except (LookupError, ValueError, ArithmeticError):
        pass  # some of a family's names, not all: not of that family
    raise UserError(
        "a weights file must be of a known family of tokenizers",
        f"{weights}: {', '.join(sorted(shapes)[:3])}",
        "put its config beside it, or see ggm-image tokenizers",
    )


def _name(weights: Path) -> str:
    """The file's name; that of its folder where the file is called as everybody's is."""
    if weights.stem not in ("last", "model"):
        return weights.stem
    folder = weights.resolve().parent
    return (folder.parent if folder.name in ("checkpoints", "ckpts") else folder).name
