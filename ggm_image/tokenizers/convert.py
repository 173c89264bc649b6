"""Convert a tokenizer of any layout to a folder of ours, with safetensors and config.yaml."""

from pathlib import Path

import torch
from omegaconf import OmegaConf

from ggm_image.io.files import atomic_folder, sha256_file, write_text
from ggm_image.io.safetensors import save_weights
from ggm_image.tokenizers.registry import load_spec
from ggm_image.tokenizers.spec import WEIGHTS, TokenizerSpec


def convert_tokenizer(spec: TokenizerSpec, out: str | Path, *, name: str = "", half: bool = False) -> TokenizerSpec:
    """Load a tokenizer and write its folder, whole or not at all.

    Token caches and models made with the original also work with the converted tokenizer, unless it is rounded:
    config.yaml keeps the original's SHA-256 as its identity.

    Args:
        spec: of `registry.find_tokenizer` or `registry.published_spec`.
        out: a folder that does not exist or is empty.
        name: what the tokenizer shall be called; its own name by default.
        half: round the weights to float16; that is another tokenizer, with an identity of its own.
    """
    out = Path(out)
    # A temporary folder that is renamed at the end, so that an error leaves nothing behind.
    with atomic_folder(out) as folder:
        tokenizer = load_spec(spec)
        save_weights(folder / WEIGHTS, tokenizer.state_dict(), torch.float16 if half else torch.float32)
        entries = {
            "name": name or spec.name,
            "family": spec.family,
            "licence": spec.licence,
            "data": spec.data,
            "architecture": spec.architecture,
            "weights": {
                "sha256": sha256_file(folder / WEIGHTS),
                # Token caches name the original's hash. Rounded weights give other tokens, so they do not inherit it.
                "identity": "" if half else tokenizer.sha256,
                "decoder": "" if half else tokenizer.decoder_sha256,
                "url": None,
                "mirrors": [],
            },
            "reported": spec.reported,
            "converted_from": {"file": spec.file, "sha256": tokenizer.sha256, "page": spec.page},
        }
        write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(entries)))
    return TokenizerSpec.read(out)
