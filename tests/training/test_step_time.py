"""Steps that are timed: a clock of the test tells what they cost, or the real one does."""

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from ggm_image.training.step_time import time_steps
from ggm_image.training.trainer import SITES, GeneratorTrainer
from tests.training.test_cost_estimate import CONFIGURATION


@pytest.mark.parametrize(("seconds", "rows"), [(100.0, 50), (2.0, 32), (0.5, 4), (0.1, 2)])
def test_rows_and_the_rest_are_told_apart(seconds: float, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are doubled until their part takes an eighth of the time; the update counts once, whatever it takes.

    Seen to fail with the update counted in every row: 42 million parameters with Muon, batch size 16, were predicted to
    take 103 s a step.
    """
    clock = [0.0]

    class Timed(GeneratorTrainer):
        def train_step(self) -> dict[str, Any]:
            batch = self._batch()
            assert len(batch[SITES]) == 7
            clock[0] += 0.03 + 0.01 * len(batch[0])
            self.update()
            return {}

        def update(self) -> torch.Tensor:
            clock[0] += 5.0
            return torch.zeros(())

    for name in ("train_step", "update"):
        monkeypatch.setattr(GeneratorTrainer, name, vars(Timed)[name])
    found = time_steps(CONFIGURATION, "cpu", rows=50, queried=7, seconds=seconds, timer=lambda: clock[0])
    assert found.rows == rows
    assert (found.fixed, found.per_row) == (pytest.approx(5.03), pytest.approx(0.01))
    assert found.seconds(500) == pytest.approx(10.03)
    alone = time_steps(CONFIGURATION, "cpu", rows=1, queried=7, seconds=seconds, timer=lambda: clock[0])
    assert alone.seconds(2) == pytest.approx(5.0 + 2 * 0.04)


def test_real_steps_leave_the_config_and_the_random_numbers_as_they_are() -> None:
    config = replace(CONFIGURATION, train=replace(CONFIGURATION.train, accumulate=3, optimizer="muon"))
    before, state = asdict(config), torch.get_rng_state()
    assert time_steps(config, "cpu", rows=2, queried=3, seconds=0.1).seconds(6) > 0
    assert asdict(config) == before
    assert torch.equal(torch.get_rng_state(), state)
