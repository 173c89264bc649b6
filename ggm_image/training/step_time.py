"""Measure the time of an optimizer step on this machine, with a few real steps on random tokens.

A step has a cost per row and a fixed cost. The fixed cost is mostly the update: optimizer, moving average, gradient
norm. That of Muon can be several times the cost of a row, so it is timed by itself. The rest is timed with as many
rows as take a few seconds, and extrapolated to the whole batch. Each timed step queries the mean number of sites, as
the cost is linear in it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from ggm_image.data.token_cache.manifest import Manifest
from ggm_image.network import NetworkConfig
from ggm_image.training.batches import ResumableSampler, rows_of_rank
from ggm_image.training.config import GeneratorConfig
from ggm_image.training.dataset import TokenSet
from ggm_image.training.trainer import GeneratorTrainer

SECONDS = 16.0
"""About how long the timing takes, without the set-up; less for small networks."""
REPEATS = 3


@dataclass(frozen=True)
class StepTime:
    """The time of a step as a function of its rows, of which at most ``rows`` were timed."""

    fixed: float
    per_row: float
    rows: int

    def seconds(self, rows: float) -> float:
        """Seconds of a step of so many rows."""
        return self.fixed + rows * self.per_row


def time_steps(
    config: GeneratorConfig,
    device: str,
    *,
    rows: int,
    queried: int,
    seconds: float = SECONDS,
    timer: Callable[[], float] = time.perf_counter,
) -> StepTime:
    """Time training steps as ``config`` says, not compiled.

    Rows are doubled, at least to two, until forward and backward pass take an eighth of the time, or have all rows.

    Args:
        rows: of a step in one process.
        queried: sites that a step queries.
        seconds: about how long to take, if a row and an update take less.
        timer: seconds since any moment.
    """
    with TemporaryDirectory() as folder, torch.random.fork_rng():
        trainer = _trainer(config, device, rows, queried, Path(folder) / "run")

        def timed(work: Callable[[], object]) -> float:
            _wait(trainer.device)
            start = timer()
            work()
            _wait(trainer.device)
            return timer() - start

        def repeated(work: Callable[[], object], repeats: int | None = None) -> float:
            """The median of some times, of fewer where one takes long; the first call sets things up."""
            work()
            times = [timed(work)]
            repeats = repeats or (REPEATS if times[0] < seconds / 16 else 2)
            return median(times + [timed(work) for _ in range(repeats - 1)])

        def passes(count: int, repeats: int | None = None) -> float:
            _set_rows(trainer, count)
            return repeated(trainer.train_step, repeats)

        trainer.updates = False
        count, took = 1, passes(1, 1)
        while count < rows and (took < seconds / 8 or count == 1):  # two sizes tell the rows from the rest
            count = min(2 * count, rows)
            took = passes(count, 1)
        few = max(1, count // 4)
        long, short = passes(count), passes(few)
        # The gradients of the last step are still there.
        trainer.updates = True
        update = repeated(trainer.update)
    per_row = long / count if count == few else min(max(0.0, (long - short) / (count - few)), long / count)
    return StepTime(long - count * per_row + update, per_row, count)


class _Parts(GeneratorTrainer):
    """A trainer whose steps need not change the weights."""

    updates = True

    def update(self) -> torch.Tensor:
        return super().update() if self.updates else torch.zeros(())


def random_tokens(network: NetworkConfig, rows: int) -> tuple[Manifest, TokenSet]:
    """Random token grids and labels of a network's sizes, to time steps without a token cache."""
    height, width = network.grid
    tokens = torch.randint(network.codebook_size, (rows, height * width), dtype=torch.int32)
    data = TokenSet(tokens, torch.randint(max(1, network.classes), (rows,)))
    manifest = Manifest(
        tokenizer_name="random",
        tokenizer_sha256="",
        codebook_size=network.codebook_size,
        grid=(height, width),
        image_size=0,
        class_names=[str(k) for k in range(network.classes)],
        preprocessing={},
        source={},
        items=rows,
    )
    return manifest, data


def _trainer(config: GeneratorConfig, device: str, rows: int, queried: int, out: Path) -> _Parts:
    """A trainer of the run in one process, on random tokens; it writes nothing."""
    train = replace(config.train, batch_size=rows, accumulate=1, strategy="auto", compile=False, start_from_codes=False)
    objective = replace(config.objective, lattice=0.0)  # the last block of a lattice may be smaller
    manifest, data = random_tokens(config.network, max(2, rows))
    settings = replace(config, start="", train=train, objective=objective)
    trainer = _Parts(settings, manifest, data, data, out, device=device, report=lambda line: None)
    trainer.block = queried
    return trainer


def _set_rows(trainer: GeneratorTrainer, rows: int) -> None:
    trainer.config.train.batch_size = rows
    trainer.order = ResumableSampler(len(trainer.training), rows, 0)
    trainer.own, trainer.pieces = rows_of_rank(rows, 0, 1, 1)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
