"""Images for the inpainting page, from the model's own samples: masks and samples, and signal maps of damage.

    python tools/figures/inpainting_examples.py assets/models/cifar10/samples --out assets/inpainting

Writes examples.png (a row for each kind of hole: the sample, its mask in grey, five samples) and damage.png (a sample
in which six tokens were replaced, its signal map at level 0.9; with a patch of another sample in it, at level 0.5).
"""

from pathlib import Path

import click
import torch
from make_masks import KINDS, make_mask
from PIL import Image

from ggm_image.cli.main import run
from ggm_image.cli.options import overwrite_option
from ggm_image.data.sources.image_files import open_source
from ggm_image.errors import UserError
from ggm_image.image.io import open_pil, rgb_pixels, to_pil
from ggm_image.image.visualize import heat_map, image_grid
from ggm_image.io.outputs import Gate, numbered
from ggm_image.pipelines.image import Model
from ggm_image.pipelines.load import load_model

SCALE, GAP = 3, 2


def replace_tokens(model: Model, image: Image.Image, k: int) -> Image.Image:
    """The image with k of its tokens replaced by random ones."""
    generator = torch.Generator().manual_seed(1)
    tokens = model.encode(rgb_pixels(image)[None])
    where = torch.randperm(tokens.numel(), generator=generator)[:k]
    tokens.view(-1)[where] = torch.randint(0, model.tokenizer.codebook_size, (k,), generator=generator)
    return to_pil(model.decode(tokens)[0])


def paste_patch(image: Image.Image, other: Image.Image) -> Image.Image:
    """The image with a part of another one in it."""
    damaged = image.copy()
    damaged.paste(other.crop((4, 16, 16, 28)), (4, 16))
    return damaged


@click.command(help=__doc__)
@click.argument("samples", type=click.Path(path_type=Path))
@click.option("--model", "model_name", default="cifar10", show_default=True)
@click.option("--pick", default="7,1,18,8,14", show_default=True, help="Sample of each row, one a kind of hole.")
@click.option("--patch", default="8,1", show_default=True, help="The damaged sample, and the one its patch is from.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default="inpainting", show_default=True)
@overwrite_option
def main(samples: Path, model_name: str, pick: str, patch: str, seed: int, out: Path, overwrite: bool) -> None:
    gate = Gate("inpainting_examples", overwrite)
    for name in ("examples.png", "damage.png"):
        gate.check_file(out / name)
    model = load_model(model_name)
    source = open_source(samples)
    rows, damage = [int(k) for k in pick.split(",")], [int(k) for k in patch.split(",")]
    if max(rows + damage) >= len(source) or len(rows) != len(KINDS) or len(damage) != 2:
        raise UserError(f"--pick names {len(KINDS)} samples and --patch two", f"{pick}; {patch}", f"of {len(source)}")
    cells = []
    for kind, k in zip(KINDS, rows, strict=True):
        image = open_pil(samples / numbered(k))
        mask = make_mask(kind, image.height, image.width, seed=seed, index=k)
        classes = k % max(1, len(model.class_names))  # samples take the classes in turn
        answers = model.inpaint(image, mask, n=5, classes=classes, seed=seed)
        shown = [rgb_pixels(p) for p in (image, image, *answers)]
        shown[1] = shown[1].masked_fill(torch.from_numpy(mask), 128)
        cells += shown
    grid = torch.stack(cells).repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3)
    gate.save(out / "examples.png", to_pil(image_grid(grid, 7, gap=GAP)))

    label = damage[0] % max(1, len(model.class_names))
    whole, other = (open_pil(samples / numbered(k)).convert("RGB") for k in damage)
    maps = []
    for damaged, level in ((replace_tokens(model, whole, 6), 0.9), (paste_patch(whole, other), 0.5)):
        probability = model.signal(damaged, level=level, classes=label)
        maps.append(rgb_pixels(heat_map(damaged, probability, model.tokenizer.downscale)))
    gate.save(out / "damage.png", to_pil(image_grid(torch.stack(maps), 1, gap=8)))


if __name__ == "__main__":
    raise SystemExit(run(main))
