"""A trained network on disk: a folder of ``model.safetensors`` and a fully resolved ``config.yaml``.

No pickle is ever read. Weights may be stored in half precision; they are widened when they are loaded.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from ggm_image.io.files import atomic_path, sha256_file, write_text
from ggm_image.io.safetensors import load_weights, save_weights
from ggm_image.network import Transformer
from ggm_image.pipelines.model_folder import (
    CONFIG,
    FORMAT_VERSION,
    TEXT_TOKENIZER,
    TOKENIZER,
    WEIGHTS,
    NetworkFolder,
    find_model,
    shipped_models,
)
from ggm_image.tokenizers.bpe import find_tokenizer_file

__all__ = ["CONFIG", "WEIGHTS", "NetworkFolder", "export_model", "find_model", "load_network", "shipped_models"]

PRESETS: dict[str, dict[str, Any]] = {
    "fast": {"order": "signal", "sweeps": 1, "block": 8},
    "best": {"order": "signal", "sweeps": 2, "block": 4},
    "exact": {"order": "schedule", "sweeps": 4, "block": 1},
}


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
        state: the network's state, usually the moving average of its weights.
        network: the fields of its `NetworkConfig`.
        tokenizer: ``name``, ``sha256`` and, for one that is not shipped, ``source``; of text, ``modality`` "text". A
            ``tokenizer.json`` is copied into the folder.
        class_names: in the order of the labels.
        training: the resolved training config and what is known of the run.
        presets: sampler settings by name; `PRESETS` by default.
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
    if file := find_tokenizer_file(tokenizer.get("source", "")):
        with atomic_path(folder / TOKENIZER / TEXT_TOKENIZER) as temporary:
            shutil.copyfile(file, temporary)
    write_text(folder / CONFIG, OmegaConf.to_yaml(OmegaConf.create(config)))


def load_network(folder: NetworkFolder) -> tuple[Transformer, str]:
    """The network of a model folder, in float32 on the CPU, and the SHA-256 of its weights."""
    folder.check_weights()
    network = Transformer(folder.network)
    load_weights(network, folder.weights)
    return network.eval().requires_grad_(False), sha256_file(folder.weights)
