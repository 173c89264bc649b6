"""A toy data set of tokens, a config that learns it in seconds, and the log of a run."""

import csv
from pathlib import Path

import torch

from ggm_image.data.token_cache.manifest import Manifest
from ggm_image.data.token_cache.writer import TokenCacheWriter

V = 16
CONFIG = """
network: {codebook_size: 16, classes: 2, grid: [3, 3], width: 32, depth: 2, heads: 2, condition_width: 8}
data: {holdout: 4}
train: {steps: 12, batch_size: 8, warmup_steps: 3, compile: false, precision: 32-true, log_every: 2,
        validate_every: 6, sample_every: 0}
"""


def write_cache(
    folder: Path,
    *,
    count: int = 40,
    flip: bool = False,
    sha256: str = "ab" * 32,
    noise: float = 0.1,
    names: tuple[str, ...] = ("left", "right"),
    seed: int = 0,
    shard_size: int = 10_000,
) -> Path:
    """Images of one repeated token: 3 for label 0, 11 for label 1, some noise. Further names have no image."""
    items = count * (2 if flip else 1)
    manifest = Manifest(
        tokenizer_name="toy",
        tokenizer_sha256=sha256,
        codebook_size=V,
        grid=(3, 3),
        image_size=12,
        class_names=list(names),
        preprocessing={"flip": flip},
        source={"path": "toy", "images": count},
        items=items,
        shard_size=shard_size,
    )
    writer = TokenCacheWriter(folder, manifest)
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.arange(items) % count) % 2
    tokens = torch.where(labels == 0, 3, 11)[:, None, None].repeat(1, 3, 3)
    sampled = torch.randint(0, V, tokens.shape, generator=generator)
    tokens = torch.where(torch.rand(tokens.shape, generator=generator) < noise, sampled, tokens)
    for part in writer.pending():
        writer.write(tokens[part.start : part.stop], labels[part.start : part.stop])
    writer.finish()
    return folder


def log_of(run_folder: Path) -> list[dict[str, str]]:
    with open(run_folder / "log.csv", newline="") as file:
        return list(csv.DictReader(file))
