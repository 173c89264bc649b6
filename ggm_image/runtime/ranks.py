"""This process's share of the work: N processes split it by rank and do not communicate."""

import os
import re

from ggm_image.errors import UserError


def rank_and_world_size(asked: str | None = None) -> tuple[int, int]:
    """The number of this process and how many there are.

    Args:
        asked: ``i/n``, the number counted from 0, e.g. from an array job of a cluster's queue; by default what
            torchrun says in ``RANK`` and ``WORLD_SIZE``, and without these one process alone.

    Returns:
        rank: in [0, world size).
        world size: at least 1.
    """
    if asked is not None:
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", asked)
        if not match or not int(match[1]) < int(match[2]):
            raise UserError("a share must be i/n with i from 0 to n - 1", asked, "use 0/4, 1/4, 2/4 and 3/4 for four")
        return int(match[1]), int(match[2])
    rank, world_size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    if not rank and not world_size:
        return 0, 1
    numbers = all(text.isdecimal() and len(text) < 10 for text in (rank, world_size))
    if not numbers or not int(rank) < int(world_size):
        raise UserError(
            "RANK must be a number from 0 to WORLD_SIZE - 1",
            f"RANK={rank!r}, WORLD_SIZE={world_size!r}",
            "start the processes with torchrun, or unset both",
        )
    return int(rank), int(world_size)
