"""The loop that all training runs share: steps, log, checkpoints, measurements, signals and the clock.

A training is a subclass of `TrainingLoop` that says what a step is, what is logged, measured and saved.
"""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch

from ggm_image.errors import PeerFailure, UserError
from ggm_image.io.files import remove_temporaries
from ggm_image.runtime.compile import UNTIMED_STEPS, cannot_compile, compile_pays
from ggm_image.training.checkpoint import has_checkpoint, time_left
from ggm_image.training.distributed import PAUSE, DistributedContext
from ggm_image.training.logging import MetricLogger, Stopwatch, fetch, to_stderr
from ggm_image.training.optim import learning_rate
from ggm_image.training.plots import plot_at_the_end
from ggm_image.training.signals import GracefulStop, Interrupted, last_words


class LoopSettings(Protocol):
    """The entries of ``train`` that the loop reads, see `config.TrainConfig`."""

    steps: int
    max_minutes: float | None
    learning_rate: float
    schedule: str
    final_share: float
    decay_fraction: float
    warmup_steps: int
    precision: str
    compile: Any
    log_every: int
    logger: Any
    checkpoint_minutes: float


class TrainingLoop:
    """One run of a training.

    Args:
        say: receives each line of progress, in the first process; printed to stderr by default.

    Attributes:
        step: steps that are done.
        clock: minutes of training over all resumptions; compiling does not count.
        compiled: whether `compile_if_it_pays` has decided to compile.
        untimed: steps of this process still to come for which the clock stands, as they compile.
        timer: what the run's minutes are counted by.
        log: while `fit` runs, in the first process.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ()
    """Of ``log.csv``; ``minutes`` among them."""
    FOLDERS: ClassVar[tuple[str, ...]] = ()
    """Folders of the run that the training writes into."""
    LOG_CHECKPOINTS: ClassVar[bool] = True
    """Whether a row is logged at each checkpoint and at the last step, as well as every ``train.log_every`` steps."""
    MAY_BE_INFINITE: ClassVar[tuple[str, ...]] = ()
    """Logged values that are infinite in a good run."""
    timer: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(
        self,
        config: Any,
        train: LoopSettings,
        out: Path,
        *,
        context: DistributedContext | None = None,
        say: Callable[[str], None] = to_stderr,
    ) -> None:
        self.settings, self.out, self._shown_config = train, out, config
        self.context = context or DistributedContext()
        self.say = say if self.context.is_main_process else lambda line: None
        self.log: MetricLogger | None = None
        self.step, self._seconds = 0, 0.0
        self._saved_step: int | None = None
        self._resumed_at = -1
        self.compiled, self.untimed = False, 0
        self.clock = Stopwatch(timer=self.timer)

    # What a training says of itself.

    def advance(self) -> Mapping[str, Any]:
        """One step, which counts ``step`` up; what it logs, as tensors, so that nothing waits for them."""
        raise NotImplementedError

    def save(self) -> None:
        """Write a checkpoint, whole; called by all processes."""
        raise NotImplementedError

    def report(self, numbers: Mapping[str, float], steps_per_second: float, left: str) -> tuple[dict[str, float], str]:
        """A row of the log, and a line of progress.

        Args:
            numbers: what `advance` has returned, of all processes together, and ``minutes``.
        """
        raise NotImplementedError

    def measure(self, stop: GracefulStop) -> None:
        """What is due at this step besides the log: validation, images; called at the resume as well."""

    def finish(self) -> None:
        """What is written once, at the end of the training; called by all processes."""

    def numbers(self, values: Mapping[str, Any]) -> dict[str, float]:
        """Numbers in place of tensors, for the whole batch; called by all processes."""
        return fetch(values)

    # What all trainings share.

    def compile_if_it_pays(self, device: torch.device) -> bool:
        """Decide whether to compile, and say why; the clock then starts after the first steps."""
        train = self.settings
        compiled, line = compile_pays(
            train.compile, device, train.precision, steps=train.steps, minutes=train.max_minutes
        )
        if line:
            self.say(line)
        if compiled and (why := cannot_compile(device.type)):
            self.say(f"not compiled, so training is slower: {why}")
            compiled = False
        self.compiled, self.untimed = compiled, UNTIMED_STEPS if compiled else 0
        self.clock = Stopwatch(timer=self.timer, running=not self.untimed)
        return compiled

    def resume_at(self, step: int, seconds: float) -> None:
        """Continue a run from its checkpoint at a step, after so many seconds of training."""
        self.step = self._saved_step = self._resumed_at = step
        self._seconds = seconds
        self.clock = Stopwatch(seconds, self.timer, running=not self.untimed)

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1], by steps or by time, whichever is larger; the same everywhere."""
        train = self.settings
        seconds = self.clock.seconds if self.context.world_size == 1 else self._seconds
        by_time = seconds / (60 * train.max_minutes) if train.max_minutes else 0.0
        return min(1.0, max(self.step / train.steps, by_time))

    @property
    def rate(self) -> float:
        """Learning rate of the next step."""
        train = self.settings
        return learning_rate(
            train.learning_rate,
            step=self.step,
            warmup_steps=train.warmup_steps,
            progress=self.progress,
            final_share=train.final_share,
            schedule=train.schedule,
            decay_fraction=train.decay_fraction,
        )

    def fit(self) -> None:
        """Train to the end.

        Raises:
            UserError: the loss or the gradient is no longer finite, or another process has died.
            PeerFailure: another process has raised an error.
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once everything is saved.
        """
        with self.context.together():
            if self.context.is_main_process:
                self.log = MetricLogger(
                    self.out,
                    self.COLUMNS,
                    self.step,
                    loggers=self.settings.logger,
                    config=asdict(self._shown_config),
                    say=self.say,
                )
        try:
            give_up = self._give_up if self.context.world_size == 1 else None
            with self.context.lost(), GracefulStop(silent=not self.context.is_main_process, give_up=give_up) as stop:
                with suppress(Interrupted):
                    self._loop(stop)
                stop.taken()
                if self._saved_step != self.step or self._resumed_at == self.step:
                    self._save()
            if self.progress >= 1:
                self.finish()
        finally:
            if self.log is not None:
                self.log.close()
        with self.context.together():
            if self.context.is_main_process and not stop.wanted:  # it can take longer than a signal leaves
                plot_at_the_end(self.out)
        if self.progress < 1:
            self.say(f"saved at step {self.step}; rerun the same command with --resume to continue")
            if not self.context.is_main_process:
                time.sleep(PAUSE)
                raise PeerFailure(130)
            raise KeyboardInterrupt

    def _give_up(self) -> str:
        """Tidy up before the process ends within a step."""
        remove_temporaries(self.out, *(self.out / name for name in self.FOLDERS))
        return last_words(self.step + 1, self._saved_step)

    def _save(self) -> None:
        self.save()
        self._saved_step = self.step

    def _loop(self, stop: GracefulStop) -> None:
        train = self.settings
        stopping, saved = self.context.agree(stop.wanted, self.clock.seconds)
        logged, logged_step = saved, self.step  # where the rate of the next row counts from
        checked = self.step  # the last step whose values were seen to be finite
        if self.step and not stopping:
            self.measure(stop)  # what an earlier process had no time for
            stopping, _ = self.context.agree(stop.wanted, 0.0)
        while self.progress < 1 and not stopping:
            values = self.advance()
            if self.untimed:
                self.untimed -= 1
                if not self.untimed:
                    self.clock.start()
                    logged_step = self.step
            stopping, now = self.context.agree(stop.wanted, self.clock.seconds)
            if stopping:
                stop.taken()
            self._seconds = now
            done = self.progress >= 1
            due = now - saved >= 60 * train.checkpoint_minutes
            log_due = self.step % train.log_every == 0
            if log_due or done or due:
                numbers, checked = self._finite(values) | {"minutes": now / 60}, self.step
                if log_due or self.LOG_CHECKPOINTS:
                    rate = (self.step - logged_step) / max(now - logged, 1e-9)
                    self._log_row(numbers, rate)
                    logged, logged_step = now, self.step
            if due or done:  # before anything that is only measured
                with stop.saving():
                    self._save()
                _, saved = self.context.agree(stop.wanted, self.clock.seconds)
            if not stopping:
                self.measure(stop)
                stopping = stop.wanted and self.context.world_size == 1  # several agree after the next step
        if self.step != checked:
            self._finite(values)  # weights of a run that has diverged must not replace the last good checkpoint

    def _log_row(self, numbers: Mapping[str, float], steps_per_second: float) -> None:
        left = time_left(
            step=self.step,
            steps=self.settings.steps,
            seconds=60 * numbers["minutes"],
            minutes=self.settings.max_minutes,
            steps_per_second=steps_per_second,
        )
        row, line = self.report(numbers, steps_per_second, left)
        self.write_row(row)
        self.say(line)

    def write_row(self, row: Mapping[str, float]) -> None:
        """Log values of this step; called by all processes."""
        with self.context.together():
            if self.log is not None:
                self.log.write(self.step, row)

    def _finite(self, values: Mapping[str, Any]) -> dict[str, float]:
        """`numbers`; raises UserError, in all processes, where one is not finite."""
        numbers = self.numbers(values)
        with self.context.together():
            wrong = {name: value for name, value in numbers.items() if not math.isfinite(value)}
            if wrong.keys() - set(self.MAY_BE_INFINITE):
                kept = has_checkpoint(self.out)
                good = f"the last good checkpoint is in {self.out}" if kept else "there is no checkpoint"
                way = "resume with --resume and" if kept else "start again with"
                raise UserError(
                    f"training diverged at step {self.step}: the loss or the gradient is not finite",
                    ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in wrong.items()),
                    f"{good}; {way} a lower train.learning_rate",
                )
        return numbers
