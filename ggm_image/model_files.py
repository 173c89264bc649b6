"""A trained network on disk: a folder of ``model.safetensors`` and a fully resolved ``config.yaml``.

No pickle is ever read. Weights may be stored in half precision; they are widened when they are loaded.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from ggm_image.config_files import read_yaml
from ggm_image.errors import UserError
from ggm_image.files import sha256_file, write_text
from ggm_image.network import NetworkConfig, Transformer
from ggm_image.resources import resource_dir
from ggm_image.weights import load_weights, save_weights

FORMAT_VERSION = 1
WEIGHTS, CONFIG = "model.safetensors", "config.yaml"
PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"order": "signal", "sweeps": 1, "block": 8},
    "best": {"order": "signal", "sweeps": 2, "block": 4},
    "exact": {"order": "schedule", "sweeps": 4, "block": 1},
}


@dataclass(frozen=True, kw_only=True)
class NetworkFolder:
    """What ``config.yaml`` of a trained network says.

    Attributes:
        folder: where it lies.
        network: sizes of the transformer.
        tokenizer_name, tokenizer_sha256: the only tokenizer that it can be used with.
        tokenizer_source: folder of that tokenizer when the model was trained; empty for a shipped one.
        class_names: in the order of the labels.
        presets: sampler settings by name.
        config: all of ``config.yaml``, with how it was trained.
    """

    folder: Path
    network: NetworkConfig
    tokenizer_name: str
    tokenizer_sha256: str
    tokenizer_source: str
    class_names: list[str]
    presets: dict[str, dict[str, Any]]
    config: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def weights(self) -> Path:
        return self.folder / WEIGHTS

    @staticmethod
    def read(folder: Path) -> "NetworkFolder":
        """Read ``config.yaml``.

        Raises:
            UserError: if it is missing or is not a model's.
        """
        path = folder / CONFIG
        if not path.is_file():
            raise UserError(f"a model is a folder with {CONFIG} and {WEIGHTS}", f"no {path}", "give a model folder")
        try:
            written = read_yaml(path, "must describe a model", f"keep the {CONFIG} that came with the weights")
            config: Any = OmegaConf.to_container(written, resolve=True)
            if config["format_version"] != FORMAT_VERSION:
                raise UserError(
                    f"{path} must have format version {FORMAT_VERSION}",
                    f"got {config['format_version']}",
                    "install the version of ggm-image that wrote it",
                )
            network = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(NetworkConfig), config["network"]))
            assert isinstance(network, NetworkConfig)
            if not isinstance(config["class_names"], list) or len(config["class_names"]) != network.classes:
                raise ValueError(f"class_names are not the names of {network.classes} classes")
            return NetworkFolder(
                folder=folder,
                network=network,
                tokenizer_name=str(config["tokenizer"]["name"]),
                tokenizer_sha256=str(config["tokenizer"]["sha256"]),
                tokenizer_source=str(config["tokenizer"].get("source", "")),
                class_names=[str(name) for name in config["class_names"]],
                presets={str(k): dict(v) for k, v in config["presets"].items()},
                config=config,
            )
        except UserError:
            raise
        except (
            OmegaConfBaseException,
            KeyError,
            TypeError,
            AttributeError,
            ValueError,
            OverflowError,
            RecursionError,
        ) as error:
            raise UserError(
                f"{path} must describe a model",
                f"{type(error).__name__}: {error}",
                f"export it again, or keep the {CONFIG} that came with the weights",
            ) from error


def export_model(
    folder: str | Path,
    state: Mapping[str, Tensor],
    *,
    network: Mapping[str, Any],
    tokenizer: Mapping[str, str],
    class_names: list[str],
    training: Mapping[str, Any],
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a model folder, each of its two files whole or not at all.

    Args:
        folder: where to.
        state: the network's state, usually the moving average of its weights.
        network: the fields of its `NetworkConfig`.
        tokenizer: ``name``, ``sha256`` and, for one that is not shipped, ``source``.
        class_names: in the order of the labels.
        training: the resolved training config and what is known of the run.
        presets: sampler settings by name; `PRESETS` by default.
        dtype: of the stored weights.
    """
    folder = Path(folder)
    config = {
        "format_version": FORMAT_VERSION,
        "network": dict(network),
        "tokenizer": dict(tokenizer),
        "class_names": class_names,
        "presets": {k: dict(v) for k, v in (presets or PRESETS).items()},
        "training": dict(training),
    }
    save_weights(folder / WEIGHTS, state, dtype)
    write_text(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(config)))


def find_model(name_or_path: str | Path) -> NetworkFolder:
    """The model folder of a shipped name or of a path.

    Raises:
        UserError: if there is none; names the shipped ones.
    """
    path = Path(name_or_path)
    shipped = {folder.name: folder for folder in shipped_models()}
    # A folder of pictures called cifar10 must not hide the model of that name.
    if path.is_dir() and ((path / CONFIG).is_file() or str(name_or_path) not in shipped):
        return NetworkFolder.read(path)
    if str(name_or_path) in shipped:
        return shipped[str(name_or_path)]
    near = difflib.get_close_matches(str(name_or_path), shipped, n=3, cutoff=0.3) or sorted(shipped)
    raise UserError(
        "no such model, neither a shipped name nor a folder", f"got {str(name_or_path)!r}", f"known: {', '.join(near)}"
    )


def shipped_models() -> list[NetworkFolder]:
    """Every model that is shipped, by name."""
    return [NetworkFolder.read(p.parent) for p in sorted(resource_dir("assets").glob(f"models/*/{CONFIG}"))]


def load_network(folder: NetworkFolder) -> tuple[Transformer, str]:
    """The network of a model folder, in float32 on the CPU, and the SHA-256 of its weights.

    Raises:
        UserError: if the weights are missing, damaged, of other shapes, or not finite.
    """
    if not folder.weights.is_file():
        raise UserError("the model has no weights", f"no {folder.weights}", "copy the file there, or train it")
    network = Transformer(folder.network)
    load_weights(network, folder.weights)
    return network.eval().requires_grad_(False), sha256_file(folder.weights)
