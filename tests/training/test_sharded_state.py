"""Rows of tensors in several files."""

from pathlib import Path

import torch

from ggm_image.training import sharded_state


def test_rows_are_runs_as_chunk_has_them() -> None:
    for length in (1, 2, 5, 6, 16):
        for world in (1, 2, 3, 4, 7):
            expected = [len(part) for part in torch.arange(length).chunk(world)]
            found = [sharded_state.rows_of(length, rank, world) for rank in range(world)]
            assert [stop - start for start, stop in found] == expected + [0] * (world - len(expected))
            assert [row for start, stop in found for row in range(start, stop)] == list(range(length))


def test_any_run_of_rows_can_be_read_from_any_parts(tmp_path: Path) -> None:
    """Of the parts, the rows that are asked for and no others."""
    value = torch.arange(14).view(7, 2)
    for world in (1, 2, 3, 5, 9):
        bounds = [sharded_state.rows_of(7, rank, world) for rank in range(world)]
        leaves = [
            {sharded_state.START: a, sharded_state.SHAPE: [7, 2], sharded_state.ROWS: value[a:b].clone()}
            for a, b in bounds
        ]
        joined = sharded_state.join([{"step": 3, "part": {"x": leaf}} for leaf in leaves])
        for start in range(8):
            for stop in range(start, 8):
                assert torch.equal(joined["part"]["x"].rows(start, stop), value[start:stop])
        assert torch.equal(sharded_state.whole(joined)["part"]["x"], value)
        assert joined["step"] == 3
