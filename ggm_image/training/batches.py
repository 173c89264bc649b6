"""Which rows a batch holds, and which of them a process works on."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor

from ggm_image.errors import UserError


class ResumableSampler:
    """Rows of a data set in a new random order each epoch; its state is three numbers.

    Args:
        rows: number of rows.
        batch_size: rows a batch; a batch may span two epochs, so none is dropped.
        seed: of all epochs' orders.
    """

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.epoch, self.position = 0, 0
        self._order = self._permutation()

    def _permutation(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return torch.randperm(self.rows, generator=generator)

    def next(self) -> Tensor:
        """Row numbers (batch_size,) of the next batch."""
        parts, missing = [], self.batch_size
        while missing:
            part = self._order[self.position : self.position + missing]
            parts.append(part)
            missing -= len(part)
            self.position += len(part)
            if self.position == self.rows:
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._permutation()
        return torch.cat(parts)

    def state_dict(self) -> dict[str, int]:
        return {"rows": self.rows, "seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        for name in ("rows", "seed"):
            if state[name] != getattr(self, name):
                raise UserError(
                    f"the run was started with other data: {name}",
                    f"{state[name]} in the checkpoint, now {getattr(self, name)}",
                    "give the token cache and the seed that the run was started with",
                )
        self.epoch, self.position = state["epoch"], state["position"]
        self._order = self._permutation()


def rows_of_rank(batch_size: int, rank: int, world: int, accumulate: int) -> tuple[slice, list[slice]]:
    """The rows of a batch that a process works on, and their division into pieces, counted from the first of them.

    Pieces differ by one row at most.

    Raises:
        UserError: there are fewer rows than pieces.
    """
    pieces = world * accumulate
    if batch_size < pieces:
        raise UserError(
            "train.batch_size must be at least processes times train.accumulate",
            f"{batch_size} against {world} x {accumulate}",
            f"set train.batch_size={pieces}, or less of the others",
        )
    ends = [batch_size * k // pieces for k in range(pieces + 1)]
    own = ends[rank * accumulate : (rank + 1) * accumulate + 1]
    return slice(own[0], own[-1]), [slice(a - own[0], b - own[0]) for a, b in pairwise(own)]
