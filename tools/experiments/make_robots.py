"""A data set of avatars, 64 x 64 pixels and twelve classes, composed from the parts in the PyPI package `robohash`.

    pip install 'ggm-image[robots]'
    python tools/experiments/make_robots.py robots64

| class | parts | images: train, val |
| --- | --- | --- |
| `robot-blue` and nine other colours | set1 by Zikri Kader: body, face, accessory, eyes, mouth | 2,000, 145 each |
| `monster` | set2 by Hrvoje Novakovic: face and body colours, face, body, eyes, mouth, nose | 4,000, 290 |
| `head` | set3 by Julian Peter Arias: face, wave, antenna, eyes, eyebrows, nose, mouth | 4,000, 290 |

The artwork is CC BY 3.0 (set1: or 4.0): credit the authors wherever you publish the images or a model's samples.
Writes OUT/train/CLASS/NUMBER.png and OUT/val/CLASS/NUMBER.png, 28,000 and 2,030 of them in about two minutes. No
combination of parts occurs twice, and none of a robot occurs in two colours, so validation shares no composition with
training. The pixels depend on the seed and the counts only; the validation images on the seed and --val only. Layers
are composed at 256 x 256 pixels on a soft grey (white robots would vanish on white), then downsampled.
"""

import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import click
from PIL import Image

from ggm_image.cli.main import run
from ggm_image.errors import UserError
from ggm_image.io.files import atomic_folder
from ggm_image.runtime.progress import progress

SIZE, CANVAS = 64, 256
BACKGROUND = (236, 239, 244)
FRAMES = {"set1": (0.0, 0.0, 1.0, 1.0), "set2": (0.08, 0.0, 0.92, 0.84), "set3": (0.0, -0.08, 1.0, 0.92)}
"""Left, top, right, bottom of the square shown, as fractions of a part's size: monsters closer, heads centred."""

Parts = tuple[int, ...]
"""One combination: which part of each layer, from the back to the front."""


@dataclass(frozen=True)
class Kind:
    """Classes that are composed from the same designs: the ten robots, or one class alone.

    Attributes:
        frame: the square that is shown, see `FRAMES`.
        weight: how many times as many images as a robot class has.
        layers: files of each class in drawing order; the design of `layers[name][k][i]` is the same for every class.
    """

    frame: tuple[float, float, float, float]
    weight: int
    layers: dict[str, list[list[Path]]]

    def sizes(self) -> Parts:
        """Number of parts of each layer."""
        return tuple(map(len, next(iter(self.layers.values()))))


def design(path: Path) -> int:
    """Number of a part's design: `003#blue_face-04.png` and `001#red_face-04.png` are both 4."""
    found = re.search(r"(\d+)\.png$", path.name)
    return int(found[1]) if found else -1


def layers_of(folder: Path) -> list[list[Path]]:
    """Parts of each layer by design; a folder `004#02Face` is layer `02Face`, and layers are drawn in that order."""
    folders = sorted((p for p in folder.glob("*#*") if p.is_dir()), key=lambda p: p.name.split("#")[1])
    layers = [sorted(p.glob("*.png"), key=lambda path: (design(path), path.name)) for p in folders]
    if not layers or not all(layers):
        raise UserError("no parts of avatars", folder, "install robohash 2.0, or pass --parts ROBOHASH/sets")
    return layers


def find_kinds(sets: Path) -> list[Kind]:
    """The kinds of avatars below robohash's folder ``sets``.

    Raises:
        UserError: a set is missing, or two colours of robots have different designs.
    """
    colours = sorted(p.name for p in (sets / "set1").glob("*") if p.is_dir() and any(p.glob("*#*")))
    if not colours:
        raise UserError("no coloured robots", sets / "set1", "install robohash 2.0, or pass --parts ROBOHASH/sets")
    robots = {f"robot-{colour}": layers_of(sets / "set1" / colour) for colour in colours}
    designs = {name: [[design(path) for path in layer] for layer in layers] for name, layers in robots.items()}
    for name, found in designs.items():
        if found != designs[f"robot-{colours[0]}"]:
            raise UserError("robots of all colours must have the same designs", name, "install robohash 2.0")
    return [
        Kind(FRAMES["set1"], 1, robots),
        Kind(FRAMES["set2"], 2, {"monster": layers_of(sets / "set2")}),
        Kind(FRAMES["set3"], 2, {"head": layers_of(sets / "set3")}),
    ]


def combinations(sizes: Parts, seed: str) -> Iterator[Parts]:
    """Random combinations of parts without repetition, as many as there are.

    Only `random.random` is used: Python guarantees its sequence for a seed, but not that of `sample` or `shuffle`.
    """
    rng, seen = random.Random(seed), set[Parts]()
    while len(seen) < math.prod(sizes):
        parts = tuple(int(rng.random() * size) for size in sizes)
        if parts not in seen:
            seen.add(parts)
            yield parts


def plan(kind: Kind, counts: dict[str, int], seed: str) -> dict[tuple[str, str], list[Parts]]:
    """Combinations of each split and class, all different.

    Args:
        kind: of avatars.
        counts: images of a robot class for each split. Splits are filled one after another: a later one does not
            change those before it.
        seed: of the order.

    Raises:
        UserError: more images than combinations.
    """
    source, planned = combinations(kind.sizes(), seed), {}
    for split, count in counts.items():
        for name in kind.layers:
            found = list(islice(source, count * kind.weight))
            if len(found) < count * kind.weight:
                fix = f"ask for fewer than {sum(counts.values())} images of a class"
                raise UserError("too few different combinations of parts", f"{name} of {split}", fix)
            planned[split, name] = found
    return planned


def open_part(path: Path, frame: tuple[float, float, float, float]) -> Image.Image:
    """The framed part as RGBA of CANVAS x CANVAS pixels. Pillow resizes RGBA with colours multiplied by alpha."""
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGBA")
    except (OSError, SyntaxError, ValueError) as error:  # SyntaxError: Pillow's word for a broken PNG
        raise UserError("part cannot be read", path, "install robohash again") from error
    left, right = (round(x * image.width) for x in frame[::2])
    top, bottom = (round(y * image.height) for y in frame[1::2])
    return image.crop((left, top, right, bottom)).resize((CANVAS, CANVAS), Image.Resampling.LANCZOS)


def compose(layers: Sequence[Image.Image]) -> Image.Image:
    """Layers from the back to the front, on the background: an RGB image of SIZE x SIZE pixels.

    Downsampled after composing, so that edges which lie on each other do not let the background through.
    """
    canvas = Image.new("RGBA", (CANVAS, CANVAS), (*BACKGROUND, 255))
    for layer in layers:
        canvas.alpha_composite(layer)
    return canvas.convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def installed_parts() -> Path:
    """Folder `sets` of the installed package `robohash`, which is not imported."""
    found = find_spec("robohash")
    if found is None or found.origin is None:
        raise UserError(
            "the package robohash is not installed", "no module robohash", "pip install 'ggm-image[robots]'"
        )
    return Path(found.origin).parent / "sets"


@click.command(help=__doc__)
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--train", type=click.IntRange(1), default=2000, show_default=True, help="Images of each robot class.")
@click.option("--val", type=click.IntRange(1), default=145, show_default=True, help="Images of each robot class.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--parts", type=click.Path(path_type=Path), help="Folder `sets` of robohash; default: as installed.")
def main(out: Path, train: int, val: int, seed: int, parts: Path | None) -> None:
    kinds = find_kinds(parts if parts is not None else installed_parts())
    plans = [plan(kind, {"val": val, "train": train}, f"{seed} {number}") for number, kind in enumerate(kinds)]
    with atomic_folder(out) as temporary:
        written = 0
        for kind, planned in zip(kinds, plans, strict=True):
            for name, files in kind.layers.items():
                images = [[open_part(path, kind.frame) for path in layer] for layer in files]
                for split in ("train", "val"):
                    folder = temporary / split / name
                    folder.mkdir(parents=True)
                    chosen = planned[split, name]
                    for k, combination in enumerate(progress(chosen, total=len(chosen), unit="image", label=name)):
                        image = compose([layer[part] for layer, part in zip(images, combination, strict=True)])
                        image.save(folder / f"{k:05d}.png", format="PNG")
                        written += 1
    click.echo(f"{out}: {written} images of {sum(len(kind.layers) for kind in kinds)} classes")


if __name__ == "__main__":
    raise SystemExit(run(main))
