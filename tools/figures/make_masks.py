"""Masks for inpainting, seeded: centre, half, border, strokes, scattered, or where a folder's images are transparent.

    python tools/figures/make_masks.py masks/ --kind strokes --size 32x32 -n 100
    python tools/figures/make_masks.py masks/ --kind alpha --from stickers/

White is what will be inpainted. `centre` is the middle quarter of the image, `half` its right half, `border` all
but the middle quarter (outpainting), `strokes` free-form brush strokes (after Yu et al., ICCV 2019) until a quarter is
white, `scattered` random squares of --cell pixels, one in two; `alpha` is white where an image is less than half
opaque.
"""

import math
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageDraw

from ggm_image.cli.main import run
from ggm_image.cli.options import overwrite_option, seed_option
from ggm_image.errors import UserError
from ggm_image.image.masks import load_mask
from ggm_image.io.outputs import Gate

Mask = Bool[np.ndarray, "h w"]


def centre(height: int, width: int, rng: np.random.Generator, cell: int) -> Mask:
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 4 : height - height // 4, width // 4 : width - width // 4] = True
    return mask


def half(height: int, width: int, rng: np.random.Generator, cell: int) -> Mask:
    return np.broadcast_to(np.arange(width) >= width // 2, (height, width)).copy()


def border(height: int, width: int, rng: np.random.Generator, cell: int) -> Mask:
    return ~centre(height, width, rng, cell)


def strokes(height: int, width: int, rng: np.random.Generator, cell: int) -> Mask:
    """Strokes of a few turns each, as wide as a tenth of the image, until a quarter is covered."""
    sheet = Image.new("1", (width, height))
    draw, side = ImageDraw.Draw(sheet), min(height, width)
    while np.asarray(sheet).mean() < 0.25:
        x, y, angle = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, 2 * math.pi)
        brush = max(1, round(side * rng.uniform(0.06, 0.14)))
        for _ in range(rng.integers(2, 6)):
            angle += rng.uniform(-0.8, 0.8)
            length = side * rng.uniform(0.1, 0.3)
            to_x, to_y = x + length * math.cos(angle), y + length * math.sin(angle)
            draw.line((x, y, to_x, to_y), fill=1, width=brush)
            draw.ellipse((to_x - brush / 2, to_y - brush / 2, to_x + brush / 2, to_y + brush / 2), fill=1)
            x, y = to_x, to_y
    return np.asarray(sheet).copy()


def scattered(height: int, width: int, rng: np.random.Generator, cell: int) -> Mask:
    """Half of the squares of `cell` pixels, exactly, at random."""
    rows, columns = math.ceil(height / cell), math.ceil(width / cell)
    chosen = rng.permutation(rows * columns).reshape(rows, columns) < rows * columns // 2
    return chosen.repeat(cell, 0).repeat(cell, 1)[:height, :width]


KINDS: dict[str, Callable[[int, int, np.random.Generator, int], Mask]] = {
    "centre": centre,
    "half": half,
    "border": border,
    "strokes": strokes,
    "scattered": scattered,
}


def make_mask(kind: str, height: int, width: int, *, seed: int, index: int, cell: int = 4) -> Mask:
    """Mask ``index`` of a seed, the same whatever the number of masks; (height, width), True where white."""
    return KINDS[kind](height, width, np.random.default_rng([seed, index]), cell)


@click.command(help=__doc__)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--kind", type=click.Choice([*KINDS, "alpha"]), required=True)
@click.option("--size", default="32x32", show_default=True, metavar="WIDTHxHEIGHT")
@click.option("-n", "count", type=click.IntRange(1), default=1, show_default=True)
@click.option("--cell", type=click.IntRange(1), default=4, show_default=True, help="Pixels a side for scattered.")
@click.option("--from", "source", type=click.Path(path_type=Path), help="Folder of images, for alpha.")
@overwrite_option
@seed_option
def main(
    out: Path, kind: str, size: str, count: int, cell: int, source: Path | None, overwrite: bool, seed: int
) -> None:
    if kind == "alpha":
        if source is None or not source.is_dir():
            raise UserError("alpha needs images with transparent parts", f"got {source}", "give their folder by --from")
        files = sorted(path for path in source.iterdir() if path.is_file())
        masks = {f"{path.stem}.png": load_mask(path)[1] for path in files}
    else:
        width, _, height = size.partition("x")
        if not (width.isdecimal() and height.isdecimal() and 1 <= int(width) <= 16384 and 1 <= int(height) <= 16384):
            raise UserError("--size must be WIDTHxHEIGHT", f"got {size}", "write for example 256x192")
        masks = {
            f"{k:06d}.png": make_mask(kind, int(height), int(width), seed=seed, index=k, cell=cell)
            for k in range(count)
        }
    gate = Gate("make_masks", overwrite)
    for name in masks:
        gate.check_file(out / name)
    for name, mask in masks.items():
        gate.save(out / name, Image.fromarray(mask.astype(np.uint8) * 255))
    click.echo(f"{out}: {len(masks)} masks")


if __name__ == "__main__":
    raise SystemExit(run(main))
