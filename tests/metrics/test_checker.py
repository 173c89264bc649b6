"""Chequered patches: found where they are, and nothing else taken for them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.metrics.checker import THRESHOLD, checker_energy, chequered_share


def grey(values: Tensor) -> Tensor:
    """(h, w) in [0, 255] as one RGB image."""
    return values.round().clamp(0, 255).to(torch.uint8).expand(1, 3, -1, -1)


def grid(side: int = 32) -> tuple[Tensor, Tensor]:
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return y, x


def board(contrast: float) -> Tensor:
    """Chessboard of single pixels around grey; ``contrast`` 1 is black and white."""
    y, x = grid()
    return 127.5 + 127.5 * contrast * (1 - 2 * ((y + x) % 2))


def test_energy_of_a_chessboard_is_its_contrast_squared() -> None:
    """But in the last row and column, which have no neighbours. Seen to fail with wrapped neighbours."""
    energy = checker_energy(grey(board(1.0)))
    assert energy.shape == (1, 8, 8)
    assert energy[0, :7, :7].eq(1).all()
    assert energy[0, :7, 7].tolist() == pytest.approx([0.75] * 7)
    assert float(energy[0, 7, 7]) == pytest.approx(9 / 16)
    assert float(checker_energy(grey(board(0.2)))[0, 3, 3]) == pytest.approx(0.04, abs=1e-3)
    assert float(chequered_share(grey(board(0.2)))) == 1
    assert float(chequered_share(grey(board(0.1)))) == 0


def test_a_chequered_patch_is_found_where_it_is() -> None:
    _, x = grid()
    image = 4.0 * x
    image[8:16, 12:20] = board(0.4)[8:16, 12:20]
    cells = checker_energy(grey(image))[0] > THRESHOLD
    assert cells.nonzero().tolist() == [[2, 3], [2, 4], [3, 3], [3, 4]]
    share = chequered_share(torch.cat([grey(image), grey(4.0 * x)]))
    assert share.tolist() == [4 / 64, 0]


def test_smooth_images_and_edges_are_not_chequered() -> None:
    y, x = grid()
    smooth = {
        "flat": torch.full((32, 32), 90.0),
        "ramp": 8.0 * x,
        "wave": 127.5 + 127 * torch.sin(x / 3) * torch.cos(y / 4),
        "vertical edge": 255.0 * (x > 13),
        "horizontal edge": 255.0 * (y > 14),
        "stripes of one pixel": 255.0 * (x % 2),
        "blurred disc": 255 * torch.sigmoid(6 - ((x - 15.0) ** 2 + (y - 16.0) ** 2).sqrt()),
    }
    for name, values in smooth.items():
        assert float(chequered_share(grey(values))) == 0, name


def test_cells_are_those_of_the_definition() -> None:
    """Written out in loops, on noise whose sides are no multiples of 4, and whose channels differ."""
    images = torch.randint(0, 256, (2, 3, 11, 14), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    energy = checker_energy(images)
    assert energy.shape == (2, 2, 3)
    for n in range(2):
        g = images[n].numpy().astype(float).mean(0) / 127.5 - 1
        for row in range(2):
            for column in range(3):
                values = [
                    ((g[y, x] - g[y, x + 1] - g[y + 1, x] + g[y + 1, x + 1]) / 4) ** 2
                    for y in range(4 * row, 4 * row + 4)
                    for x in range(4 * column, 4 * column + 4)
                ]
                assert float(energy[n, row, column]) == pytest.approx(np.mean(values))


@pytest.mark.usefixtures("unchecked_shapes")
def test_what_has_no_cells() -> None:
    for wrong in (torch.zeros(1, 3, 3, 8, dtype=torch.uint8), torch.zeros(1, 3, 8, 8)):
        with pytest.raises(UserError, match=r"at least 4 x 4 pixels \(got "):
            checker_energy(wrong)
