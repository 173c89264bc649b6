"""Training the small perceptual loss: a classifier of the images' own classes, whose hidden layers are the features."""

import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ggm_image.data.sources.image_files import open_source
from ggm_image.errors import UserError
from ggm_image.image.preprocess import to_model
from ggm_image.io.safetensors import save_weights
from ggm_image.runtime.compile import cannot_compile, compile_pays
from ggm_image.runtime.precision import choose_precision
from ggm_image.training.batches import ResumableSampler, move_together
from ggm_image.training.logging import to_stderr
from ggm_image.training.vqgan.perceptual import SmallPerceptual
from ggm_image.training.vqgan.run import TrainingImages

LOG_EVERY = 100
SHIFT = 3
"""Pixels by which a batch is moved at most."""


def train_classifier(
    source: str | Path,
    out: str | Path,
    *,
    image_size: int = 32,
    minutes: float = 4.0,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Train a `perceptual.SmallPerceptual` and write its weights.

    Args:
        source: class folders of images, or a tar of them.
    """
    torch.manual_seed(seed)
    where = torch.device(device)
    precision, line = choose_precision("auto", where)
    to_stderr(line)
    files = open_source(source)
    if not files.class_names:
        raise UserError("a classifier needs class folders", source, "put each class into a folder of its own")
    images, labels = TrainingImages(files, image_size, workers=2, device=where), torch.tensor(files.labels)
    order = ResumableSampler(images.rows, batch_size, seed)
    generator = torch.Generator().manual_seed(seed)
    model = SmallPerceptual(len(files.class_names)).to(where)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.02)
    compiled, line = compile_pays("auto", where, precision, steps=1 << 30, minutes=minutes)
    to_stderr(line)
    logits = torch.compile(model.logits) if compiled and not cannot_compile(where.type) else model.logits
    step, right, start = 0, torch.zeros((), device=where), time.monotonic()
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1:
        # The length of the run is a time, so the learning rate follows the clock: warm-up, then a cosine to zero.
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, progress / 0.1) * 0.5 * (1 + math.cos(math.pi * progress))
        rows = order.next()
        batch, target = _augmented(to_model(images[rows]), labels[rows], where, generator)
        with torch.autocast(where.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            scores = logits(batch).float()
        loss = F.cross_entropy(scores, target, label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        right = 0.99 * right + 0.01 * (scores.argmax(dim=1) == target).float().mean()
        if step % LOG_EVERY == 0:
            accuracy = float(right) / (1 - 0.99**step)
            left = minutes * (1 - progress)
            to_stderr(f"step {step}  loss {loss.item():.3f}  accuracy {100 * accuracy:.1f}%  about {left:.1f} min left")
    save_weights(Path(out), model.state_dict(), torch.float32)


def _augmented(
    batch: Float[Tensor, "n 3 h w"], labels: Int[Tensor, " n"], device: torch.device, generator: torch.Generator
) -> tuple[Float[Tensor, "n 3 h w"], Int[Tensor, " n"]]:
    """Half of the images mirrored, all shifted; and their labels, on the device."""
    mirrored, target = move_together([torch.rand(len(labels), generator=generator) < 0.5, labels], device)
    batch = torch.where(mirrored.bool()[:, None, None, None], batch.flip(-1), batch)
    # One shift for the whole batch: torch.roll moves all images at once.
    shift = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=generator).tolist()
    return torch.roll(batch, shift, dims=(2, 3)), target
