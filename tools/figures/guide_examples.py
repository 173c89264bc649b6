"""The image of the page on sampling: samples that follow a guide.

    python tools/figures/guide_examples.py assets/models/robots64/samples --model robots64 --out assets

Writes guide.png. Rows 1 and 2: a sample reduced to a quarter and to half of its size, its bicubic enlargement, and four
enlargements by the model. Row 3: a sample, and variations of it at falling strengths. Row 4: colour hints, and
four samples that follow them.
"""

from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image, ImageDraw

from ggm_image.cli.main import run
from ggm_image.cli.options import overwrite_option
from ggm_image.data.sources.image_files import open_source
from ggm_image.errors import UserError
from ggm_image.image.io import open_pil, rgb_pixels, to_pil
from ggm_image.image.visualize import image_grid
from ggm_image.io.outputs import Gate, numbered
from ggm_image.pipelines.image import Model
from ggm_image.pipelines.load import load_model

SCALE, GAP, COLUMNS = 2, 2, 6
STRENGTHS = (1.0, 0.1, 0.03, 0.01, 0.003)


def colour_hints(width: int, height: int) -> Image.Image:
    """A head in one colour and a body in another, on a transparent background."""
    hints = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(hints)
    draw.ellipse((0.3 * width, 0.18 * height, 0.7 * width, 0.45 * height), fill=(60, 170, 80, 255))
    draw.ellipse((0.34 * width, 0.66 * height, 0.66 * width, 0.96 * height), fill=(220, 70, 60, 255))
    return hints


def enlarged(image: Image.Image, width: int, height: int, how: Image.Resampling) -> torch.Tensor:
    return rgb_pixels(image.resize((width, height), how))


def rows(
    model: Model, samples: Path, picks: list[int], *, strength: float, hint: float, **options: Any
) -> list[torch.Tensor]:
    """The cells of the figure, row by row."""
    model.kernel_batch = 1  # no padding: there are few samples of each guide
    height, width = model.image_size
    cells: list[torch.Tensor] = []
    classes = [k % max(1, len(model.class_names)) for k in picks]  # samples have the classes in turn
    for k, label, part in zip(picks[:2], classes, (4, 2), strict=False):
        small = open_pil(samples / numbered(k)).convert("RGB").resize((width // part, height // part))
        cells += [enlarged(small, width, height, how) for how in (Image.Resampling.NEAREST, Image.Resampling.BICUBIC)]
        cells += list(model.sample(COLUMNS - 2, guide=small, strength=strength, classes=label, **options))
    varied = open_pil(samples / numbered(picks[2])).convert("RGB")
    cells.append(rgb_pixels(varied))
    for value in STRENGTHS:
        cells += list(model.sample(1, guide=varied, strength=value, classes=classes[2], **options))
    hints = colour_hints(width, height)
    shown = np.where(np.asarray(hints)[..., 3:] > 0, np.asarray(hints)[..., :3], np.uint8(255))
    cells.append(torch.from_numpy(shown).permute(2, 0, 1))
    cells += list(model.sample(COLUMNS - 1, guide=hints, strength=hint, classes=classes[3], **options))
    return cells


@click.command(help=__doc__)
@click.argument("samples", type=click.Path(path_type=Path))
@click.option("--model", "model_name", default="robots64", show_default=True)
@click.option("--pick", default="6,10,8,1", show_default=True, help="Samples of rows 1 to 3; the class of row 4.")
@click.option("--strength", type=float, default=0.3, show_default=True, help="Of rows 1 and 2.")
@click.option("--hint-strength", type=float, default=0.5, show_default=True, help="Of row 4.")
@click.option("--preset", default="best", show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default="guide", show_default=True)
@overwrite_option
def main(
    samples: Path,
    model_name: str,
    pick: str,
    strength: float,
    hint_strength: float,
    preset: str,
    seed: int,
    out: Path,
    overwrite: bool,
) -> None:
    gate = Gate("guide_examples", overwrite)
    gate.check_file(out / "guide.png")
    picks = [int(k) for k in pick.split(",")]
    source = open_source(samples)
    if len(picks) != 4 or max(picks) >= len(source):
        raise UserError("--pick names four samples", pick, f"numbers below {len(source)}")
    options: dict[str, Any] = {"strength": strength, "hint": hint_strength, "preset": preset, "seed": seed}
    cells = rows(load_model(model_name), samples, picks, **options)
    grid = torch.stack(cells).repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3)
    gate.save(out / "guide.png", to_pil(image_grid(grid, COLUMNS, gap=GAP)))


if __name__ == "__main__":
    raise SystemExit(run(main))
