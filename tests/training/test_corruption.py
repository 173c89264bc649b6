"""What a step does to clean tokens: the same numbers as the checked functions give."""

import pytest
import torch

from ggm_image.glauber import add_noise, uniform_noise
from ggm_image.schedule import random_levels, random_query, random_training_state
from ggm_image.training.batches import move_together
from ggm_image.training.corruption import cumulative_noise, replace_by_noise


@pytest.mark.parametrize("codes", [16, 1000, 16384])
@pytest.mark.parametrize("uniform", [True, False])
def test_replaced_tokens_are_those_of_the_checked_function(codes: int, uniform: bool) -> None:
    weights = torch.rand(codes, generator=torch.Generator().manual_seed(1))
    noise = uniform_noise(codes) if uniform else weights / weights.sum()
    x_0 = torch.randint(0, codes, (20, 64), generator=torch.Generator().manual_seed(2))
    levels = torch.rand(x_0.shape, generator=torch.Generator().manual_seed(3))
    cumulative = cumulative_noise(noise)
    assert (cumulative is None) == uniform
    found = replace_by_noise(x_0, levels, cumulative, codes, generator=torch.Generator().manual_seed(4))
    assert torch.equal(found, add_noise(x_0, levels, noise, generator=torch.Generator().manual_seed(4)))


def test_a_training_state_is_its_two_halves() -> None:
    """The first on the CPU, the second where the tokens are; with one generator they are the whole."""
    whole, halves = (torch.Generator().manual_seed(5) for _ in range(2))
    for _ in range(20):
        state = random_training_state(3, 5, 4, generator=whole, masked=0.5)
        query = random_query(5, 4, generator=halves)
        levels = random_levels(query, 3, 5, 4, generator=halves, masked=0.5)
        assert torch.equal(state.sites, query.sites)
        assert torch.equal(state.levels, levels)


def test_what_is_moved_together_keeps_its_shapes() -> None:
    values = [torch.arange(6, dtype=torch.int32).view(2, 3), torch.arange(4), torch.tensor([True, False])]
    moved = move_together(values, torch.device("meta"))
    assert [value.shape for value in moved] == [value.shape for value in values]
    assert all(a is b for a, b in zip(values, move_together(values, torch.device("cpu")), strict=True))
