"""Rotary tables: relative in cells, absolute in shares of the grid."""

import pytest
import torch

from ggm_image.errors import UserError
from ggm_image.network import NetworkConfig, Transformer
from ggm_image.network.positions import grid_positions, rotate


def scores(height: int, width: int, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """(h, w, h, w) dot products of one query and one key vector placed at every pair of sites."""
    positions = grid_positions(height, width, len(q))
    sites = height * width
    turned_q = rotate(q.expand(1, 1, sites, -1), positions)[0, 0]
    turned_k = rotate(k.expand(1, 1, sites, -1), positions)[0, 0]
    return (turned_q @ turned_k.T).view(height, width, height, width)


def test_dot_products_depend_on_the_shift_alone() -> None:
    # Seen to fail with the columns counted as rows are (repeat_interleave), and with the sign of one half of `sin`
    # turned round.
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    s = scores(4, 5, q, k)
    torch.testing.assert_close(s[0, 0, 2, 1], s[1, 3, 3, 4])
    torch.testing.assert_close(s[:-1, :-1, :-1, :-1], s[1:, 1:, 1:, 1:])
    assert (s[0, 0, 0, 1] - s[0, 0, 1, 0]).abs() > 1e-3  # the axes are told apart
    assert (s[0, 0, 0, 1] - s[0, 1, 0, 0]).abs() > 1e-3  # and the directions


def test_a_larger_grid_keeps_the_relations_of_the_small_one() -> None:
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(scores(4, 4, q, k), scores(7, 9, q, k)[:4, :4, :4, :4])


def test_rotation_keeps_lengths_and_the_first_site() -> None:
    x = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(2))
    y = rotate(x, grid_positions(2, 3, 8))
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1))
    torch.testing.assert_close(y[:, :, 0], x[:, :, 0])
    assert not torch.allclose(y[:, :, 1], x[:, :, 1])


def test_absolute_waves_stretch_with_the_grid_and_tell_all_cells_apart() -> None:
    waves = grid_positions(3, 5, 8).waves
    distances = torch.cdist(waves, waves) + 9 * torch.eye(15)
    assert distances.min() > 0.1
    torch.testing.assert_close(waves[7], grid_positions(1, 1, 8).waves[0])  # both are the centre


def test_a_line_gives_all_pairs_to_its_one_axis() -> None:
    line = grid_positions(1, 6, 16, is_line=True)
    angles = torch.atan2(line.sin[:, 1], line.cos[:, 0])  # (l, 8)
    assert (angles[1] > 0).all()  # axial tables leave the first half, that of the rows, at 0
    frequencies = 100.0 ** (-torch.arange(8) / 8)
    torch.testing.assert_close(angles[1], frequencies)
    assert (grid_positions(1, 6, 16).sin[:, :, :4] == 0).all()
    with pytest.raises(UserError, match="one row"):
        grid_positions(2, 6, 16, is_line=True)


def test_a_network_of_a_plane_stays_one_on_a_grid_of_one_row() -> None:
    """The grid that it was trained on decides: otherwise a strip of an image would be read by other angles."""
    sizes = {"codebook_size": 4, "classes": 0, "width": 16, "depth": 1, "heads": 1}
    plane, line = (Transformer(NetworkConfig(grid=grid, **sizes)) for grid in ([4, 4], [1, 8]))
    device = torch.device("cpu")
    torch.testing.assert_close(plane.positions((1, 6), device).cos, grid_positions(1, 6, 16).cos)
    torch.testing.assert_close(line.positions((1, 6), device).cos, grid_positions(1, 6, 16, is_line=True).cos)
