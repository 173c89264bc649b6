"""The commands that are killed: small ones that write everything the real ones write."""

import random
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ggm_image.cli.main import main
from ggm_image.training.checkpoint import has_checkpoint
from tests.data.shards import write_shards
from tests.faults.harness import Story, assert_whole, digests, run, run_killed
from tests.models import tiny_model_folder

NAMES = ("encode", "encode-shards", "train", "train-tokenizer", "sample", "fid")
CONFIG = """
network: {codebook_size: 32, classes: 3, grid: [4, 4], width: 32, depth: 2, heads: 2, condition_width: 8}
data: {holdout: 8}
train: {steps: 60, batch_size: 8, warmup_steps: 3, compile: false, precision: 32-true, log_every: 5,
        validate_every: 20, sample_every: 30, checkpoint_minutes: 0.0005}
"""
TOKENIZER_CONFIG = """
name: tiny
architecture:
  n_embed: 32
  embed_dim: 4
  ddconfig: {ch: 32, ch_mult: [1, 1, 1], num_res_blocks: 1, attn_resolutions: [], resolution: 16, z_channels: 8}
loss: {perceptual: 0.0, adversarial_start: 0.5, discriminator_width: 8, discriminator_layers: 1}
train: {steps: 30, batch_size: 4, compile: false, precision: 32-true, warmup_steps: 1, log_every: 5, sample_every: 10,
        weights_dtype: float32, restart_every: 2, checkpoint_minutes: 0.0005}
"""


class Means(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float().flatten(2).mean(2)


@dataclass(frozen=True)
class Command:
    """A command whose output can be compared.

    Attributes:
        arguments: for an output folder.
        resumable: whether ``--resume`` continues from a checkpoint.
        skip: what in the output folder may differ: times, and logs of TensorBoard with their host and process.
    """

    arguments: Callable[[Path], list[str]]
    resumable: bool = False
    skip: tuple[str, ...] = ()


def prepare(root: Path) -> dict[str, Command]:
    """Images, a model with its tokenizer, tokens and features in ``root``; the commands over them."""
    torch.set_num_threads(1)  # a fork does not take a pool of threads along
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "ship"):
        (root / "pictures" / name).mkdir(parents=True)
        for k in range(40):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "pictures" / name / f"{k}.png")
    model, tokenizer = tiny_model_folder(root), root / "tokenizer"
    torch.jit.script(Means()).save(str(root / "means.pt"))
    (root / "c.yaml").write_text(CONFIG)
    (root / "t.yaml").write_text(TOKENIZER_CONFIG)
    images, tokens = str(root / "pictures"), str(root / "tokens")
    encode = ["encode", images, "--tokenizer", str(tokenizer), "--shard-size", "16", "--batch-size", "8"]
    assert main([*encode[:2], tokens, *encode[2:]]) == 0
    run_files = ("tensorboard/", "checkpoint", "model/config.yaml", "tokenizer/config.yaml", "curves.png")
    cpu = ["--device", "cpu"]
    sample = ["sample", "--model", str(model), "-n", "60", "--order", "schedule", "--sweeps", "2", "--block", "2", *cpu]
    fid = ["fid", "--model", str(model), "-n", "400", images, "--features", str(root / "means.pt"), "--bootstrap", "3"]
    shards = write_shards(root / "shards", (20, 9, 20, 15))
    return {
        "encode": Command(lambda out: [*encode[:2], str(out / "tokens"), *encode[2:], *cpu]),
        "encode-shards": Command(lambda out: ["encode", shards, str(out / "tokens"), *encode[2:], "--flip", *cpu]),
        "train": Command(
            lambda out: ["train", str(root / "c.yaml"), "--data", tokens, "--out", str(out), *cpu], True, run_files
        ),
        "train-tokenizer": Command(
            lambda out: ["train-tokenizer", str(root / "t.yaml"), "--data", images, "--out", str(out), *cpu],
            True,
            run_files,
        ),
        "sample": Command(lambda out: [*sample, "--out", str(out / "drawn")]),
        "fid": Command(lambda out: [*fid, "--bootstrap", "3", "--statistics", str(out), "--batch-size", "16", *cpu]),
    }


def kill_often(command: Command, root: Path, *, kills: int, seed: int, number: int = signal.SIGKILL) -> Story:
    """Run undisturbed, then again with ``kills`` kills; the outputs must agree, and every kill leave whole files.

    Raises:
        AssertionError: they do not, or a run fails.
    """
    root.mkdir(parents=True)
    code, seconds = run(command.arguments(root / "whole"), root / "whole.log")
    assert code == 0, (root / "whole.log").read_text()[-2000:]
    out = root / "killed"

    def arguments(again: bool) -> list[str]:
        resume = ["--resume"] if again and command.resumable and has_checkpoint(out) else []
        return [*command.arguments(out), *resume]

    def check() -> None:
        if out.exists():
            assert_whole(out)
            left = [str(path) for path in out.rglob(".*.tmp*")]
            assert number == signal.SIGKILL or not left, f"temporary files are left: {left}"

    rng = random.Random(seed)
    story = run_killed(
        arguments, root / "killed.log", kills=kills, seconds=seconds, rng=rng, check=check, number=number
    )
    story.seconds = seconds
    expected, found = digests(root / "whole", skip=command.skip), digests(out, skip=command.skip)
    differ = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    assert not differ, f"after {story.kills} kills these differ: {differ}"
    shutil.rmtree(root)
    return story
