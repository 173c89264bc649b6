"""Sharded checkpoints: each process writes its own rows, and any number of processes can resume.

A folder with ``part-00000-of-00008.pt ...``: each is the whole state, with the own rows in place of a sharded tensor.
A checkpoint is read back the same way whether it was one file or a folder: `whole` puts tensors together, `cut` takes
the rows of this process. ``torch.distributed.checkpoint`` could do this too, but it unpickles an index.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from ggm_image.io.files import disk_errors

START, SHAPE, ROWS = "first_row", "shape", "rows"


def part_name(rank: int, world: int) -> str:
    return f"part-{rank:05d}-of-{world:05d}.pt"


@dataclass(frozen=True)
class Pieces:
    """A tensor in a checkpoint, in runs of rows.

    Attributes:
        parts: first row, and rows, of each; in order.
    """

    shape: tuple[int, ...]
    parts: list[tuple[int, Tensor]]

    def rows(self, start: int, stop: int) -> Tensor:
        """The rows in [start, stop)."""
        found = [rows[max(0, start - first) : max(0, stop - first)] for first, rows in self.parts]
        return torch.cat([rows for rows in found if len(rows)] or [found[0][:0]])


def rows_of(length: int, rank: int, world: int) -> tuple[int, int]:
    """First row, and the one after the last, that a process holds: runs of equal length, as `torch.chunk` has them."""
    each = -(-length // world)
    return min(length, rank * each), min(length, (rank + 1) * each)


def own(value: Tensor) -> Tensor:
    """What this process holds of a tensor: its rows, or all of one that is not sharded."""
    return value.to_local() if isinstance(value, DTensor) else value


def whole_tensor(value: Tensor) -> Tensor:
    """All of a tensor, put together from all processes, which must all ask for it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def save_part(folder: Path, state: Mapping[str, Any], rank: int, world: int) -> None:
    """Write what this process holds of ``state`` into an existing folder."""
    path = folder / part_name(rank, world)
    with open(path, "wb") as file, disk_errors(path):
        torch.save(_own_rows(state), file)


def _own_rows(tree: Any) -> Any:
    if isinstance(tree, DTensor):
        mesh, rows = tree.device_mesh, tree.to_local()
        start, stop = rows_of(len(tree), mesh.get_local_rank(), mesh.size())
        assert tree.placements == (Shard(0),), tree.placements
        assert stop - start == len(rows), (tree.shape, start, stop)
        return {START: start, SHAPE: list(tree.shape), ROWS: rows.clone()}
    if isinstance(tree, Mapping):
        return {key: _own_rows(value) for key, value in tree.items()}
    return tree


def join(trees: Sequence[Any]) -> Any:
    """The states of all parts as one, with `Pieces` for tensors; nothing is copied."""
    first = trees[0]
    if not isinstance(first, Mapping):
        return first
    if first.keys() == {START, SHAPE, ROWS}:
        return Pieces(tuple(first[SHAPE]), [(tree[START], tree[ROWS]) for tree in trees])
    return {key: join([tree[key] for tree in trees]) for key in first}


def whole(tree: Any) -> Any:
    """A state with tensors in place of pieces."""
    if isinstance(tree, Pieces):
        return tree.rows(0, tree.shape[0])
    if isinstance(tree, Mapping):
        return {key: whole(value) for key, value in tree.items()}
    return tree


def cut(tree: Any, mesh: DeviceMesh) -> Any:
    """A state with sharded tensors: of each tensor and of all pieces, the rows of this process; numbers stay."""
    if isinstance(tree, Pieces | Tensor) and len(tree.shape):
        start, stop = rows_of(tree.shape[0], mesh.get_local_rank(), mesh.size())
        rows = tree.rows(start, stop) if isinstance(tree, Pieces) else tree[start:stop]
        # the shape and stride are passed, as they cannot be guessed where the rows are not divided evenly
        stride = torch.empty(tree.shape, device="meta").stride()
        local = rows.to(mesh.device_type).contiguous()
        return DTensor.from_local(local, mesh, [Shard(0)], shape=torch.Size(tree.shape), stride=stride)
    if isinstance(tree, Mapping):
        return {key: cut(value, mesh) for key, value in tree.items()}
    return tree
