"""Chequered patches: texture at the highest frequency, an artefact of convolutional decoders that photographs lack.

    e = ((g[y, x] - g[y, x+1] - g[y+1, x] + g[y+1, x+1]) / 4)^2

for the grey image g in [-1, 1]. It vanishes on flat areas, linear ramps and straight horizontal or vertical edges, and
is 1 on a chessboard of black and white pixels. A cell of 4 x 4 pixels whose mean of e is above 0.02 is chequered. One-
pixel diagonals and isolated pixels count too, so images of line art have a share of their own: compare with originals.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from ggm_image.errors import UserError

CELL = 4
THRESHOLD = 0.02


def checker_energy(images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n rows columns"]:
    """Mean energy of each cell of CELL x CELL pixels, in [0, 1].

    Pixels beyond the last whole cell are left out; the last row and column of an image have no energy of their own.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or min(images.shape[2:]) < CELL:
        got = f"got {images.dtype} {tuple(images.shape)}"
        raise UserError(f"images must be uint8 (n, c, h, w) of at least {CELL} x {CELL} pixels", got, "resize them")
    g = images.double().mean(dim=1) / 127.5 - 1
    e = (g[:, :-1, :-1] - g[:, :-1, 1:] - g[:, 1:, :-1] + g[:, 1:, 1:]).div(4).square()
    return F.avg_pool2d(F.pad(e, (0, 1, 0, 1)), CELL)


def chequered_share(images: UInt8[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Share of each image's cells that are chequered, in [0, 1]; arguments and errors are those of `checker_energy`."""
    return (checker_energy(images) > THRESHOLD).double().mean(dim=(1, 2))
