"""A data set of square patches, cut from photographs at several scales: for a model that inpaints photographs.

    python tools/experiments/cut_patches.py PHOTOS photos64 --size 64 --patches 200

PHOTOS is a folder of photographs, searched with its subfolders. A patch is a square at a random place of a photograph.
Its side lies between --size pixels and the shorter side of the photograph, evenly on a logarithmic scale, so that a
model sees whole scenes as well as details at full resolution. Patches are resized with antialiased bicubic and written
as OUT/train/PHOTO-PATCH.png and OUT/val/PHOTO-PATCH.png, without classes. All patches of a photograph are for training,
or all for validation. Photographs smaller than --size, or that cannot be read, are named and left out. The pixels
depend on the photographs, their names below PHOTOS, --size, --patches and --seed.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import click

from ggm_image.cli.main import run
from ggm_image.errors import UserError
from ggm_image.image.io import open_image, save_png
from ggm_image.image.preprocess import preprocess
from ggm_image.io.files import atomic_folder
from ggm_image.runtime.progress import progress
from ggm_image.runtime.streams import say

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def find_photos(folder: Path) -> list[str]:
    """Paths of the images below a folder, relative to it and sorted.

    Raises:
        UserError: there are fewer than two: one is needed for training and one for validation.
    """
    found = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    if len(found) < 2:
        raise UserError("at least two photographs are needed", f"{len(found)} in {folder}", "name another folder")
    return found


def validation_photos(names: list[str], share: float, seed: int) -> set[str]:
    """The photographs that are kept for validation: a share of them, at least one and not all."""
    count = min(max(1, round(share * len(names))), len(names) - 1)
    return set(sorted(names, key=lambda name: random.Random(f"{seed} val {name}").random())[:count])


def squares(height: int, width: int, size: int, count: int, seed: str) -> Iterator[tuple[int, int, int]]:
    """Top, left and side of the patches of one photograph.

    The k-th side lies in the k-th of ``count`` equal parts of the logarithmic scale from ``size`` to the shorter side.
    Only `random.random` is used: Python guarantees its sequence for a seed.
    """
    rng, short = random.Random(seed), min(height, width)
    for k in range(count):
        side = min(short, round(size * (short / size) ** ((k + rng.random()) / count)))
        yield int(rng.random() * (height - side + 1)), int(rng.random() * (width - side + 1)), side


@click.command(help=__doc__)
@click.argument("photos", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--size", type=click.IntRange(8, 1024), default=64, show_default=True, help="Side of a patch in pixels.")
@click.option("--patches", type=click.IntRange(1), default=200, show_default=True, help="Patches of each photograph.")
@click.option("--val", type=click.FloatRange(0, 1), default=0.05, show_default=True, help="Share of the photographs.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def main(photos: Path, out: Path, size: int, patches: int, val: float, seed: int) -> None:
    names = find_photos(photos)
    held = validation_photos(names, val, seed)
    written = {"train": 0, "val": 0}
    with atomic_folder(out) as temporary:
        for split in written:
            (temporary / split).mkdir(parents=True)
        for number, name in enumerate(progress(names, total=len(names), unit="photo", label="cut")):
            try:
                image = open_image(photos / name)
            except UserError as error:
                say(f"left out: {error.what} ({error.got})")
                continue
            height, width = image.shape[1:]
            if min(height, width) < size:
                say(f"left out: {photos / name} has {width} x {height} pixels")
                continue
            split = "val" if name in held else "train"
            for k, (top, left, side) in enumerate(squares(height, width, size, patches, f"{seed} {name}")):
                part = image[:, top : top + side, left : left + side]
                save_png(preprocess(part, size), temporary / split / f"{number:06d}-{k:04d}.png")
                written[split] += 1
        if not all(written.values()):
            fix = "use larger photographs, or a smaller --size"
            raise UserError("too few photographs can be used", f"{written['train']} patches", fix)
    click.echo(f"{out}: {written['train']} patches for training, {written['val']} for validation")


if __name__ == "__main__":
    raise SystemExit(run(main))
