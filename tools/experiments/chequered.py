"""Chequered patches in originals, reconstructions or samples: share of cells of 4 x 4 pixels, and of images with any.

    python tools/experiments/chequered.py cifar10/val reconstructions/ samples/

What is counted: `ggm_image/metrics/checker.py`. Each argument is a folder or tar of images.
"""

from itertools import groupby, islice

import click
import torch
from torch import Tensor

from ggm_image.cli.main import run
from ggm_image.data.sources.image_files import ImageSource, open_source
from ggm_image.metrics.checker import chequered_share
from ggm_image.runtime.progress import progress


def shares(source: ImageSource, label: str, batch: int = 256) -> Tensor:
    """`chequered_share` of every image; neighbours of one size go together."""
    indices = progress(range(len(source)), total=len(source), unit="img", label=label)
    found = []
    for _, images in groupby((source[k] for k in indices), key=lambda image: image.shape):
        while some := list(islice(images, batch)):
            found.append(chequered_share(torch.stack(some)))
    return torch.cat(found)


@click.command(help=__doc__)
@click.argument("folders", nargs=-1, required=True, metavar="IMAGES...")
def main(folders: tuple[str, ...]) -> None:
    for folder in folders:
        share = shares(open_source(folder), folder)
        cells, images = float(share.mean()), float((share > 0).double().mean())
        click.echo(f"{folder}: {len(share)} images, {cells:.3%} of cells, {images:.1%} of images")


if __name__ == "__main__":
    raise SystemExit(run(main))
