"""What a hole costs: the time of an inpainting over that of a whole sample, at the same sweeps and block.

    python tools/benchmarks/bench_inpaint.py cifar10

Each round samples one batch of whole images, and as many results for an image with a square mask, encoding and decoding
included. The ratio is the median over the rounds. A quarter of the sites should cost at most 0.4.
"""

import math
import statistics
import time
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from ggm_image.cli.main import run
from ggm_image.cli.options import print_json
from ggm_image.pipelines.load import load_model
from ggm_image.sampler.settings import Settings


def seconds() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


@click.command(help=__doc__)
@click.argument("model_name", metavar="MODEL", default="cifar10")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--json", "as_json", is_flag=True)
def main(model_name: str, repeats: int, device: str, as_json: bool) -> None:
    model = load_model(model_name, device=device)
    height, width = model.grid
    cell, n = model.tokenizer.downscale, model.paint_batch
    pixels = np.random.default_rng(0).integers(0, 256, (height * cell, width * cell, 3), dtype=np.uint8)
    rows: list[dict[str, Any]] = []
    for share in (1 / 16, 1 / 4, 1 / 2):
        side = math.sqrt(share)
        mask = np.zeros(pixels.shape[:2], dtype=bool)
        mask[: round(height * side) * cell, : round(width * side) * cell] = True
        for settings in (
            Settings(order="schedule", sweeps=2, block=2),
            Settings(order="schedule", sweeps=1, block=1),
            Settings(order="signal", sweeps=2, block=2),
        ):
            whole, part = [], []
            for seed in range(repeats + 1):
                start = seconds()
                labels = model.labels(n, 0)
                model.decode(model.sample_tokens(labels, seed=seed, settings=settings, batch=n), batch=n)
                between = seconds()
                model.inpaint(Image.fromarray(pixels), mask, n=n, classes=0, seed=seed, settings=settings)
                if seed:  # the first one warms up
                    whole.append(between - start)
                    part.append(seconds() - between)
            rows.append(
                {
                    "share_of_sites": float(mask.mean()),
                    "order": settings.order,
                    "sweeps": settings.sweeps,
                    "block": settings.block,
                    "sample_seconds": round(statistics.median(whole), 4),
                    "inpaint_seconds": round(statistics.median(part), 4),
                    "ratio": round(statistics.median(p / w for p, w in zip(part, whole, strict=True)), 4),
                }
            )
    if as_json:
        print_json(rows)
        return
    click.echo(f"{'hole':>6} {'order':<9} {'sweeps x block':>14} {'sample s':>9} {'inpaint s':>9} {'ratio':>6}")
    for row in rows:
        click.echo(
            f"{row['share_of_sites']:>6.1%} {row['order']:<9} {row['sweeps']:>10} x {row['block']} "
            f"{row['sample_seconds']:>9.3f} {row['inpaint_seconds']:>9.3f} {row['ratio']:>6.2f}"
        )


if __name__ == "__main__":
    raise SystemExit(run(main))
