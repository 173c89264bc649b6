"""Untrained models in the shipped layout, small enough to sample in milliseconds."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from omegaconf import OmegaConf
from torch import Tensor

from ggm_image.io.files import sha256_file
from ggm_image.io.safetensors import save_weights
from ggm_image.network import NetworkConfig, Transformer
from ggm_image.pipelines.model_weights import export_model
from ggm_image.sampler.settings import Settings
from ggm_image.tokenizers.bpe import BPETokenizer, train_bpe
from ggm_image.tokenizers.text import ByteTokenizer, TextTokenizer
from ggm_image.tokenizers.vq.vqgan import VQGAN, DDConfig, VQGANConfig

TINY_VQGAN = VQGANConfig(
    n_embed=32,
    embed_dim=4,
    ddconfig=DDConfig(ch=32, ch_mult=[1, 1, 1], num_res_blocks=1, attn_resolutions=[], resolution=16, z_channels=8),
)
FAST = Settings(order="signal", sweeps=1, block=4)
"""Few network calls."""


def tiny_tokenizer_folder(folder: Path, *, seed: int = 0) -> Path:
    """A tokenizer folder: 32 codes, 4 x 4 cells, images of 16 x 16."""
    torch.manual_seed(seed)
    tokenizer = VQGAN(TINY_VQGAN)
    torch.nn.init.normal_(tokenizer.quantize.embedding.weight)
    save_weights(folder / "model.safetensors", tokenizer.state_dict(), torch.float32)
    config = {
        "name": "tiny",
        "architecture": asdict(TINY_VQGAN),
        "weights": {"sha256": sha256_file(folder / "model.safetensors")},
    }
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    return folder


def tiny_model_folder(root: Path, *, seed: int = 0, spoil: Callable[[dict[str, Tensor]], object] | None = None) -> Path:
    """A model folder with its tokenizer beside it: 4 x 4 tokens, classes cat, dog, ship."""
    tokenizer = tiny_tokenizer_folder(root / "tokenizer", seed=seed)
    config = NetworkConfig(codebook_size=32, classes=3, grid=[4, 4], width=32, depth=2, heads=2)
    torch.manual_seed(seed)
    network = Transformer(config)
    for parameter in network.parameters():  # as initialised, the class and much else has no effect yet
        torch.nn.init.normal_(parameter, std=0.3)
    state = network.state_dict()
    if spoil is not None:
        spoil(state)
    export_model(
        root / "model",
        state,
        network=asdict(config),
        tokenizer={"name": "tiny", "sha256": sha256_file(tokenizer / "model.safetensors"), "source": str(tokenizer)},
        class_names=["cat", "dog", "ship"],
        training={},
    )
    return root / "model"


def tiny_bpe(folder: Path, codes: int = 266) -> BPETokenizer:
    """A byte-level BPE that knows a few words."""
    text = b"the cat sat on the mat. the cat is on the mat, and that is that. " * 4
    return train_bpe([text], codes, folder / "tokenizer.json")


def tiny_text_model_folder(
    root: Path, *, length: int = 16, seed: int = 0, tokenizer: TextTokenizer | None = None
) -> Path:
    """A model folder of text, of bytes by default, rows of ``length`` tokens."""
    tokenizer = tokenizer or ByteTokenizer()
    codes = tokenizer.codebook_size
    config = NetworkConfig(codebook_size=codes, classes=0, grid=[1, length], width=32, depth=2, heads=2)
    torch.manual_seed(seed)
    network = Transformer(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    export_model(
        root / "text",
        network.state_dict(),
        network=asdict(config),
        tokenizer={
            "name": tokenizer.name,
            "sha256": tokenizer.sha256,
            "source": "" if tokenizer.name == "bytes" else tokenizer.source,
            "modality": "text",
        },
        class_names=[],
        training={},
    )
    return root / "text"
