"""The README's image: one row (or column) for each class, images side by side, enlarged without smoothing.

python tools/figures/class_grid.py cifar10 assets/cifar10.png --columns 12 --scale 2
"""

from pathlib import Path

import click
import torch

from ggm_image.cli.main import run
from ggm_image.cli.options import device_option, overwrite_option, own_device, seed_option
from ggm_image.image.io import to_pil
from ggm_image.image.visualize import image_grid
from ggm_image.io.outputs import Gate
from ggm_image.pipelines.load import load_model


@click.command(help=__doc__)
@click.argument("model_name", metavar="MODEL")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--columns", "count", default=12, show_default=True, help="Images of each class, the first of the seed.")
@click.option("--upright", is_flag=True, help="One column for each class, instead of one row.")
@click.option("--scale", default=2, show_default=True, help="Pixels for each pixel.")
@click.option("--preset", default="best", show_default=True)
@overwrite_option
@seed_option
@device_option
def main(
    model_name: str,
    out: Path,
    count: int,
    upright: bool,
    scale: int,
    preset: str,
    overwrite: bool,
    seed: int,
    device: str | None,
) -> None:
    gate = Gate("class_grid", overwrite, "OUT")
    gate.check_file(out)
    model = load_model(model_name, device=own_device(device))
    rows = torch.stack([model.sample(count, classes=name, seed=seed, preset=preset) for name in model.class_names])
    images = (rows.transpose(0, 1) if upright else rows).flatten(0, 1)
    images = images.repeat_interleave(scale, dim=2).repeat_interleave(scale, dim=3)
    manifest = {"model": model.name, **model.identity, "seed": seed, "preset": preset}
    gate.save(out, to_pil(image_grid(images, columns=len(rows) if upright else count, gap=2)), manifest)
    click.echo(f"{out}: {', '.join(model.class_names)}")


if __name__ == "__main__":
    raise SystemExit(run(main))
