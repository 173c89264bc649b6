"""A joint of four sites and three codes that every method is tried on, with its states."""

import torch

from tests.enumeration import all_states, potts

SITES, CODES = 4, 3
MASK = CODES
LAW = potts(2, 2, CODES, 1.0)
STATES = all_states(SITES, CODES)
DRAWS = 20_000


def seeded(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(k) for k in range(count)]
