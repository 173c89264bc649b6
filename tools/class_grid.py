"""The README's picture: one row for each class, pictures side by side, enlarged without smoothing.

python tools/class_grid.py cifar10 assets/cifar10.png --columns 12 --scale 2
"""

from pathlib import Path

import click
import torch

from ggm_image.cli.main import run
from ggm_image.data.images import image_grid, save_png
from ggm_image.pipeline import load_model


@click.command(help=__doc__)
@click.argument("model_name", metavar="MODEL")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--columns", default=12, show_default=True, help="Pictures of each class: indices 0, 1, ... of the seed.")
@click.option("--scale", default=2, show_default=True, help="Pixels for each pixel.")
@click.option("--seed", default=0, show_default=True)
@click.option("--preset", default="best", show_default=True)
@click.option("--device", default="cpu", show_default=True)
def main(model_name: str, out: Path, columns: int, scale: int, seed: int, preset: str, device: str) -> None:
    model = load_model(model_name, device=device)
    rows = [model.sample(columns, classes=name, seed=seed, preset=preset) for name in model.class_names]
    pictures = torch.cat(rows).repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    save_png(image_grid(pictures, columns=columns, gap=2), out)
    click.echo(f"{out}: {', '.join(model.class_names)}")


if __name__ == "__main__":
    raise SystemExit(run(main))
