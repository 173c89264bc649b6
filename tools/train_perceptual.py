"""A small perceptual loss for `train-tokenizer`, trained on class folders of the pictures themselves.

    python tools/train_perceptual.py cifar10/train perceptual.safetensors --minutes 4

A classifier (see ggm_image.training.perceptual.SmallPerceptual) learns the classes; its hidden layers are the
features. Use it as `loss.perceptual_weights=perceptual.safetensors`. It is no part of the tokenizer.
"""

import math
import time
from pathlib import Path

import click
import torch
import torch.nn.functional as F

from ggm_image.cli.main import run
from ggm_image.data.images import open_source, to_model
from ggm_image.errors import UserError
from ggm_image.training.engine import DataOrder, keep_freed_memory
from ggm_image.training.perceptual import SmallPerceptual
from ggm_image.training.tokenizer import TrainingPictures
from ggm_image.weights import save_weights


@click.command(help=__doc__)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--image-size", default=32, show_default=True)
@click.option("--minutes", default=4.0, show_default=True)
@click.option("--batch-size", default=128, show_default=True)
@click.option("--learning-rate", default=2e-3, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="cpu", show_default=True)
def main(
    source: Path,
    out: Path,
    image_size: int,
    minutes: float,
    batch_size: int,
    learning_rate: float,
    seed: int,
    device: str,
) -> None:
    torch.manual_seed(seed)
    keep_freed_memory()
    files = open_source(source)
    if not files.class_names:
        raise UserError("a classifier needs class folders", source, "put each class into a folder of its own")
    pictures, labels = TrainingPictures(files, image_size, workers=2), torch.tensor(files.labels)
    order = DataOrder(pictures.rows, batch_size, seed)
    generator = torch.Generator().manual_seed(seed)
    model = SmallPerceptual(len(files.class_names)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.02)
    logits = torch.compile(model.logits)
    step, right, start = 0, 0.0, time.monotonic()
    while (progress := (time.monotonic() - start) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, progress / 0.1) * 0.5 * (1 + math.cos(math.pi * progress))
        rows = order.next()
        images = to_model(pictures[rows])
        mirrored = torch.rand(len(rows), generator=generator) < 0.5
        images[mirrored] = images[mirrored].flip(-1)
        shift = torch.randint(-3, 4, (2,), generator=generator).tolist()
        images = torch.roll(images, shift, dims=(2, 3))
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            scores = logits(images.to(device)).float()
        target = labels[rows].to(device)
        loss = F.cross_entropy(scores, target, label_smoothing=0.1)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        right = 0.99 * right + 0.01 * float((scores.argmax(dim=1) == target).float().mean())
        if step % 100 == 0:
            accuracy = right / (1 - 0.99**step)
            click.echo(f"step {step}  {100 * progress:.0f}%  loss {loss.item():.3f}  accuracy {100 * accuracy:.1f}%")
    save_weights(out, model.state_dict(), torch.float32)


if __name__ == "__main__":
    raise SystemExit(run(main))
