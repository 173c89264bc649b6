"""Choose the rows of each batch, split them over the processes, and move them to the device."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ggm_image.errors import UserError


class ResumableSampler:
    """Rows of a data set in a new random order each epoch; its state is three numbers.

    Args:
        batch_size: rows a batch; a batch may span two epochs, so none is dropped.
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


def sampling_device(device: torch.device) -> torch.device:
    """The device of a step's random numbers: the GPU if there is one, so that it never waits for the CPU."""
    return device if device.type == "cuda" else torch.device("cpu")


def fits_on_device(size: int, device: torch.device) -> bool:
    """Whether a data set of ``size`` bytes should stay on the device of a run: a quarter of the free memory at most."""
    return device.type == "cuda" and size <= torch.cuda.mem_get_info(device)[0] // 4


def move_together(values: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Integer tensors on a device, as int64, moved in one copy that nothing waits for; unchanged on the CPU."""
    if device.type == "cpu":
        return list(values)
    flat = torch.cat([value.flatten().long() for value in values])
    if device.type == "cuda":
        flat = flat.pin_memory()  # a copy from other memory waits for what the device has to do before
    parts = flat.to(device, non_blocking=True).split([value.numel() for value in values])
    return [part.view(value.shape) for part, value in zip(parts, values, strict=True)]
