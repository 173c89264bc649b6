"""Where a site is on the grid: axial rotary angles and normalised coordinates.

Legend: ``h`` grid rows, ``w`` grid columns, ``l = h * w`` sites (row-major), ``dh`` width of one attention head.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ggm_image.errors import UserError


class Positions(NamedTuple):
    """The tables of one grid, float32.

    Attributes:
        cos: (l, 1, dh / 2), or (b, 1, k, 1, dh / 2) for each image's own sites: cosines of the rotary angles.
        sin: (l, 2, dh / 2), or (b, 1, k, 2, dh / 2): minus the sines, then the sines: what each half of a head takes
            from the other.
        waves: (l, 4 * waves) sines and cosines of the normalised coordinates.
    """

    cos: Float[Tensor, "*l 1 half"]
    sin: Float[Tensor, "*l 2 half"]
    waves: Float[Tensor, "l f"]

    def at(self, sites: Int64[Tensor, " k"] | Int64[Tensor, "b k"]) -> "Positions":
        """The rotary tables of some sites."""
        cos, sin = self.cos[sites], self.sin[sites]
        if sites.dim() == 2:
            cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return Positions(cos, sin, self.waves)


def grid_positions(
    height: int,
    width: int,
    head_width: int,
    *,
    theta: float = 100.0,
    waves: int = 4,
    is_line: bool = False,
    device: torch.device | str = "cpu",
) -> Positions:
    """Axial rotary tables in units of cells, and absolute waves in units of the whole grid.

    angle(row, column) = [row * theta^(-j/n)]_j ++ [column * theta^(-j/n)]_j,  n = dh / 4

    (RoFormer, arXiv 2104.09864, once for each axis.) Angles depend on differences of cells alone, so a larger
    grid at sampling time keeps every local relation it was trained on. Attention over relative positions cannot tell
    the sky from the ground, hence the second table: sin and cos of ``pi k (u - 1/2)``, with ``u`` in (0, 1) the
    centre of the cell, which stretches with the grid.

    On a line there is one axis: angle(column) = [column * theta^(-j/n)]_j with n = dh / 2, so no pair is left over for
    rows that do not exist. A network of a plane keeps the axial angles even on a grid of one row, as it was trained.

    Args:
        height: grid rows.
        width: grid columns.
        head_width: width of one attention head, a multiple of 4.
        theta: the longest wavelength is about ``2 pi theta`` cells.
        waves: number of frequencies of the absolute table, for each axis.
        is_line: give all pairs to the columns; the height must be 1.
        device: where the tables shall lie.

    Returns:
        The tables, float32.

    Raises:
        UserError: a line of more than one row.
    """
    if is_line and height != 1:
        raise UserError("a network of a line needs a grid of one row", f"{height} x {width}", "pass (1, length)")
    n = head_width // (2 if is_line else 4)
    frequencies = theta ** (-torch.arange(n, dtype=torch.float32, device=device) / n)
    rows = torch.arange(height, dtype=torch.float32, device=device).repeat_interleave(width)  # (l,)
    columns = torch.arange(width, dtype=torch.float32, device=device).repeat(height)  # (l,)
    axes = [columns] if is_line else [rows, columns]
    angles = torch.cat([axis[:, None] * frequencies for axis in axes], dim=1)  # (l, dh/2)

    centred = torch.stack([(rows + 0.5) / height - 0.5, (columns + 0.5) / width - 0.5], dim=1)  # (l, 2)
    phases = centred[:, :, None] * (torch.pi * torch.arange(1, waves + 1, device=device))  # (l, 2, waves)
    absolute = torch.cat([phases.sin(), phases.cos()], dim=2).flatten(1)  # (l, 4 waves)
    sin = angles.sin()
    return Positions(angles.cos().unsqueeze(1), torch.stack([-sin, sin], dim=1), absolute)


def rotate(x: Float[Tensor, "b heads l dh"], positions: Positions) -> Float[Tensor, "b heads l dh"]:
    """Turn each pair ``(x_j, x_{j + dh/2})`` by its site's angle; computed in float32, returned in ``x``'s dtype."""
    halves = x.float().unflatten(-1, (2, -1))  # (b, heads, l, 2, dh/2)
    turned = halves * positions.cos + halves.flip(-2) * positions.sin  # no slices: they would not vectorise
    return turned.flatten(-2).to(x.dtype)  # (b, heads, l, dh)
