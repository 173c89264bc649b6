"""Training the denoiser on a token cache.

A step: clean tokens x_0 and classes from the cache; levels and queried sites as a random schedule would show them;
x_t = noise on x_0 by the levels, the mask id at the queried sites; the network's clean-token logits there; the loss.

Several processes draw the same batch, with the same noise, and each works on its own rows of it: neither the loss nor
the order of the data depends on how many there are.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ggm_image.compilation import UNTIMED_STEPS, cannot_compile, compile_pays
from ggm_image.data.token_cache import Manifest, TokenCache
from ggm_image.errors import Elsewhere, UserError, printable
from ggm_image.files import held, remove_temporaries
from ggm_image.glauber import add_noise
from ggm_image.model_files import PRESETS, NetworkFolder, export_model
from ggm_image.network import Transformer
from ggm_image.precision import choose_precision
from ggm_image.schedule import random_training_state
from ggm_image.training.config import GeneratorConfig, load_config, plain, save_config
from ggm_image.training.crew import PAUSE, Crew, first_speaks, make_fabric, processes_asked
from ggm_image.training.criterion import Criterion
from ggm_image.training.engine import (
    Clock,
    DataOrder,
    Ema,
    Log,
    has_checkpoint,
    learning_rate,
    load_checkpoint,
    parameter_groups,
    random_state,
    regrouped,
    save_checkpoint,
    save_sharded_checkpoint,
    set_random_state,
    time_left,
    to_stderr,
)
from ggm_image.training.evaluation import (
    FIGURES,
    MASKED_SHARES,
    VALIDATION_LEVELS,
    TokenSet,
    draw_grid,
    held_out_nll,
    mean_nll,
)
from ggm_image.training.plots import plot_at_the_end
from ggm_image.training.run_record import FREE_TO_CHANGE, check_resumed, generator_record, generator_record_of
from ggm_image.training.shards import cut, whole, whole_tensor
from ggm_image.training.starting_weights import set_starting_weights, trained_network
from ggm_image.training.stopping import Interrupted, Stop, last_words
from ggm_image.training.training_tokens import fit_to_cache, load_tokens

COLUMNS = (
    "loss",
    "gradient_norm",
    "learning_rate",
    "images_per_second",
    "minutes",
    "nll",
    *(f"nll_level_{level:g}" for level in VALIDATION_LEVELS),
    *(f"nll_masked_{share:g}" for share in MASKED_SHARES),
)


def train_generator(
    config: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    val: str | Path | None = None,
    resume: bool | Literal["auto"] = False,
    device: str = "auto",
    devices: int | None = None,
    nodes: int | None = None,
    report: Callable[[str], None] | None = None,
    method: "type[GeneratorTrainer] | None" = None,
) -> Path:
    """Train a generator and export it; with several processes, in each of them.

    Args:
        config: YAML of a `GeneratorConfig`.
        data: folder of a token cache.
        out: folder of the run: config.yaml, log.csv, checkpoint.pt (or checkpoint/), samples/, model/.
        overrides: ``key=value``.
        val: token cache of held-out pictures; takes the place of ``data.val``.
        resume: go on from the last checkpoint in ``out``; "auto" starts where there is none.
        device: auto, cpu, cuda, cuda:1, mps.
        devices: processes on this machine; those that torchrun or srun has started, or one.
        nodes: machines; likewise.
        report: called with each line of progress, in the first process; printed to stderr by default.
        method: another way of training, as a subclass; for comparisons.

    Returns:
        The exported model's folder, ``out``/model.

    Raises:
        UserError: a bad config, a cache of another tokenizer, a run in ``out`` without ``resume`` or with another
            process at work on it, a loss that is not finite, another process of the run that has died.
        Elsewhere: another process has raised what this one would.
        KeyboardInterrupt: after Ctrl-C or SIGTERM to any process, once everything is saved.
    """
    out = Path(out)
    say = report or to_stderr
    with first_speaks():
        settings = load_config(GeneratorConfig, config, overrides)
        machines = processes_asked(devices, nodes)
        fabric = make_fabric(
            device,
            settings.train.precision,
            devices=machines[0],
            nodes=machines[1],
            strategy=settings.train.strategy,
        )
    crew = Crew(fabric)
    settings.train.precision, line = choose_precision(settings.train.precision, fabric.device)
    if line and crew.first:
        say(line)
    with crew.together():
        heard = say if crew.first else lambda line: None
        cache, training, held_out = _check_run(settings, Path(data), out, val, resume, crew.world, heard)
    with first_speaks():
        checkpoint = load_checkpoint(out, crew) if resume and has_checkpoint(out) else None
    make = method or GeneratorTrainer
    record = generator_record(
        settings,
        class_names=cache.manifest.class_names,
        training=training,
        held_out=held_out,
        method=make.__name__,
    )
    if checkpoint is not None:
        with crew.together():
            _check_resumed(checkpoint, record, out, heard)
    with ExitStack() as until_the_end:
        with crew.together():
            if crew.first:
                out.mkdir(parents=True, exist_ok=True)
                until_the_end.enter_context(held(out))
                remove_temporaries(out, out / "model", out / "samples")
                save_config(out / "config.yaml", settings)
        trainer = make(settings, cache.manifest, training, held_out, out, device=device, report=report, crew=crew)
        trainer.record = record
        with crew.together():
            if checkpoint is not None:
                trainer.load_state_dict(checkpoint)
                del checkpoint
        return trainer.fit()


def _check_run(
    settings: GeneratorConfig,
    data: Path,
    out: Path,
    val: str | Path | None,
    resume: bool | str,
    processes: int,
    say: Callable[[str], None],
) -> tuple[TokenCache, TokenSet, TokenSet]:
    """Everything that can be wrong with a run, before anything is written; its data."""
    if val is not None:
        settings.data.val = str(val)
    if out.exists() and not out.is_dir():
        raise UserError("--out must be a folder", out, "choose another name")
    if has_checkpoint(out) and not resume:
        raise UserError("the folder holds a run", out, "add --resume to go on, or choose another folder")
    if resume is True and not has_checkpoint(out):
        load_checkpoint(out)  # says so
    share_rows(settings.train.batch_size, 0, processes, settings.train.accumulate)
    cache = TokenCache.open(data)
    fit_to_cache(settings, cache.manifest, data)
    if settings.start and not has_checkpoint(out):
        trained_network(settings.start, settings.network, cache.manifest)
    return cache, *load_tokens(settings, cache, say)


def _check_resumed(
    checkpoint: Mapping[str, Any], record: Mapping[str, Any], out: Path, say: Callable[[str], None]
) -> None:
    """Raise UserError unless a checkpoint is of the run that ``record`` describes; report what has changed."""
    try:
        before = generator_record_of(checkpoint)
    except (KeyError, TypeError, AttributeError) as error:
        raise _another_kind(error) from error
    if "data.class_names" not in before:
        with suppress(UserError):  # the model beside an earlier version's checkpoint has the names
            before["data.class_names"] = NetworkFolder.read(out / "model").class_names
    fix = f"resume with the run's own config and data, or start a new run with start={out / 'model'}"
    free = (*FREE_TO_CHANGE, *(name for name in record if name.startswith("presets.")))
    check_resumed(before, record, free, say, fix)


def _another_kind(error: Exception) -> UserError:
    what = "checkpoint is not one of this kind of run"
    return UserError(what, f"{type(error).__name__}: {error}", "name the folder of a `train` run")


class GeneratorTrainer:
    """One run; all that changes is in ``state_dict``.

    Attributes:
        record: what defines the run, see `run_record`; stored with every checkpoint.
        compiled: whether the blocks and the loss are.
        untimed: steps of this process still to come for which the clock stands, as they compile.
        block: queried sites of every step; drawn as the samplers will ask for them where None.
        timer: what the run's minutes are counted by.
    """

    block: int | None = None
    timer: Callable[[], float] = staticmethod(time.monotonic)

    def __init__(
        self,
        config: GeneratorConfig,
        manifest: Manifest,
        training: TokenSet,
        held_out: TokenSet,
        out: Path,
        *,
        device: str = "auto",
        report: Callable[[str], None] | None = None,
        crew: Crew | None = None,
    ) -> None:
        train = config.train
        self.config, self.manifest, self.out = config, manifest, out
        self.training, self.held_out = training, held_out
        self.crew = crew or Crew(make_fabric(device, train.precision))
        self.say = (report or to_stderr) if self.crew.first else lambda line: None
        self.record: dict[str, Any] = {}
        self.fabric = self.crew.fabric
        self.own, self.pieces = share_rows(train.batch_size, self.crew.rank, self.crew.world, train.accumulate)
        self.device = self.fabric.device
        train.precision = choose_precision(train.precision, self.device)[0]
        if self.device.type == "cpu":
            # queries and keys are normalised, so the scores are small and safe in half precision
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # the CPU reads it too

        torch.manual_seed(train.seed)
        network = self.make_network()
        if not has_checkpoint(out):
            set_starting_weights(network, config, manifest, self.say)
        network.recompute = train.activation_checkpointing
        self.network = network
        self.order = DataOrder(len(training), train.batch_size, train.seed)
        self.generator = torch.Generator().manual_seed(train.seed + 1)
        self.noise = torch.full((config.network.codebook_size,), 1 / config.network.codebook_size, device=self.device)
        criterion = self.make_criterion(network)
        compiled, line = compile_pays(
            train.compile, self.device, train.precision, steps=train.steps, minutes=train.max_minutes
        )
        if line:
            self.say(line)
        if compiled and (why := cannot_compile(self.device.type)):
            self.say(f"not compiled, so training is slower: {why}")
            compiled = False
        if compiled:
            network.compile_blocks()
            criterion.compile_head()
        self.compiled, self.untimed = compiled, UNTIMED_STEPS if compiled else 0
        self.criterion = self.fabric.setup_module(criterion)
        self.ema = Ema(network, train.ema_decay)
        optimizer = torch.optim.AdamW(
            parameter_groups(network, train.weight_decay),
            lr=train.learning_rate,
            betas=(train.betas[0], train.betas[1]),
            fused=self.device.type in ("cpu", "cuda"),
        )
        self.optimizer = self.fabric.setup_optimizers(optimizer)
        self.step, self._seconds = 0, 0.0
        self._saved_step: int | None = None
        self._resumed_at = -1
        self.clock = Clock(timer=self.timer, running=not self.untimed)

    def make_network(self) -> Transformer:
        """The untrained network; another architecture overrides this."""
        return Transformer(self.config.network)

    def make_criterion(self, network: Transformer) -> Criterion:
        """The loss of the run; another training method overrides this, or `corrupt`, or both."""
        return Criterion(network, self.config.objective, self.noise)

    def corrupt(self, x_0: Int[Tensor, "b l"]) -> tuple[Int[Tensor, "b l"], Float[Tensor, "b l"], Int[Tensor, " k"]]:
        """What the network is shown of clean tokens: tokens, the level of each, and the sites that are queried."""
        height, width = self.config.network.grid
        law = self.config.objective
        levels, sites, _ = random_training_state(
            len(x_0),
            height,
            width,
            generator=self.generator,
            masked=law.masked,
            cosine=law.cosine,
            lattice=law.lattice,
            block=self.block,
        )
        x_t = add_noise(x_0, levels, self.noise.cpu(), generator=self.generator)
        x_t[:, sites] = self.config.network.codebook_size
        return x_t, levels, sites

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings only; of sharded tensors, what this process holds."""
        return {
            "format_version": 1,
            "config": plain(self.config),
            "record": self.record,
            "step": self.step,
            "seconds": self.clock.seconds,
            "network": self.network.state_dict(),
            "ema": self.ema.state,
            "optimizer": self.optimizer.state_dict(),
            "order": self.order.state_dict(),
            "generator": self.generator.get_state(),
            "random": random_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on exactly where ``state`` was taken; `train_generator` has compared its record.

        Raises:
            UserError: it is not the checkpoint of such a run.
        """
        try:
            weights = {part: state[part] for part in ("network", "ema", "optimizer")}
            weights = cut(weights, self.crew.mesh) if self.crew.sharded else whole(weights)
            self.network.load_state_dict(weights["network"])
            self.ema.load(weights["ema"])
            self.optimizer.load_state_dict(regrouped(weights["optimizer"], self.network))
            self.order.load_state_dict(state["order"])
            self.generator.set_state(state["generator"])
            set_random_state(state["random"])
            self.step = state["step"]
            self.clock = Clock(state["seconds"], self.timer, running=not self.untimed)
            self._seconds = state["seconds"]
            self._saved_step = self._resumed_at = self.step
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise _another_kind(error) from error

    @property
    def progress(self) -> float:
        """Share of the run that is done, in [0, 1], by steps or by time, whichever is larger; the same everywhere."""
        train = self.config.train
        seconds = self.clock.seconds if self.crew.world == 1 else self._seconds
        by_time = seconds / (60 * train.max_minutes) if train.max_minutes else 0.0
        return min(1.0, max(self.step / train.steps, by_time))

    def fit(self) -> Path:
        """Train to the end, and export the averaged weights.

        Raises:
            UserError: the loss or the gradient is no longer finite, or another process has died.
            Elsewhere: another process has raised an error.
            KeyboardInterrupt: after Ctrl-C or SIGTERM, once everything is saved.
        """
        with self.crew.together():
            log = Log(self.out, COLUMNS, self.step) if self.crew.first else None
        try:
            give_up = self._give_up if self.crew.world == 1 else None
            with self.crew.lost(), Stop(silent=not self.crew.first, give_up=give_up) as stop:
                with suppress(Interrupted):
                    self._loop(log, stop)
                stop.taken()
                if self._saved_step != self.step or self._resumed_at == self.step:
                    self.save()
        finally:
            if log is not None:
                log.close()
        with self.crew.together():
            if self.crew.first and not stop.wanted:  # it can take longer than a signal leaves
                plot_at_the_end(self.out)
        if self.progress < 1:
            self.say(f"saved at step {self.step}; run the same command with --resume to go on")
            if not self.crew.first:
                time.sleep(PAUSE)
                raise Elsewhere(130)
            raise KeyboardInterrupt
        return self.out / "model"

    def _give_up(self) -> str:
        """Tidy up before the process ends within a step."""
        remove_temporaries(self.out, self.out / "model", self.out / "samples")
        return last_words(self.step + 1, self._saved_step)

    def _loop(self, log: Log | None, stop: Stop) -> None:
        train = self.config.train
        stopping, logged = self.crew.agree(stop.wanted, self.clock.seconds)
        logged_step, saved = self.step, logged
        if self.step and not stopping:
            self._measure(log, stop)  # what an earlier process had no time for
            stopping, _ = self.crew.agree(stop.wanted, 0.0)
        while self.progress < 1 and not stopping:
            values = self.train_step()
            if self.untimed:
                self.untimed -= 1
                if not self.untimed:
                    self.clock.start()
                    logged_step = self.step
            stopping, now = self.crew.agree(stop.wanted, self.clock.seconds)
            if stopping:
                stop.taken()
            self._seconds = now
            done = self.progress >= 1
            due = now - saved >= 60 * train.checkpoint_minutes
            if self.step % train.log_every == 0 or done or due:
                row = self._finite(values)
                row["images_per_second"] = (self.step - logged_step) * train.batch_size / max(now - logged, 1e-9)
                row["minutes"] = now / 60
                self._write(log, row)
                self.say(self._line(row))
                logged_step, logged = self.step, now
            if due or done:  # before anything that is only measured
                with stop.saving():
                    self.save()
                _, saved = self.crew.agree(stop.wanted, self.clock.seconds)
            if not stopping:
                self._measure(log, stop)
                stopping = stop.wanted and self.crew.world == 1  # several agree after the next step

    def _measure(self, log: Log | None, stop: Stop) -> None:
        """The held-out figures and the sample grid that are due at this step, unless they are there already."""
        train, done = self.config.train, self.progress >= 1
        validate = done or bool(train.validate_every and self.step % train.validate_every == 0)
        sample = bool(train.sample_every and (done or self.step % train.sample_every == 0))
        if self._resumed_at == self.step:
            there = (log.has("nll"), self._grid_path().exists()) if log is not None else (False, False)
            has_figures, has_grid = self.crew.sum(list(map(float, there)))
            validate, sample = validate and not has_figures, sample and not has_grid
        if validate:
            stop.optional(lambda: self._validate(log))
        if sample:
            stop.optional(self._sample)

    def _grid_path(self) -> Path:
        return self.out / "samples" / f"{self.step:07d}.png"

    def _write(self, log: Log | None, row: Mapping[str, float]) -> None:
        with self.crew.together():
            if log is not None:
                log.write(self.step, row)

    def train_step(self) -> dict[str, Any]:
        """One update; returns loss and gradient norm as tensors, so that nothing waits for them.

        The loss is this process's part of the mean over the batch: the sum over the processes is the loss.
        """
        train = self.config.train
        rate = learning_rate(
            train.learning_rate,
            step=self.step,
            warmup_steps=train.warmup_steps,
            progress=self.progress,
            final_share=train.final_share,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss, batch = torch.zeros((), device=self.device), self._batch()
        for number, piece in enumerate(self.pieces, start=1):
            part = tuple(value if value.dim() == 1 and k == SITES else value[piece] for k, value in enumerate(batch))
            weight = (piece.stop - piece.start) / train.batch_size
            with self.fabric.no_backward_sync(self.criterion, enabled=number < len(self.pieces)):
                cost = self.criterion(*part)
                # gradients are averaged over the processes; together with the weight this makes the batch's mean
                self.fabric.backward(cost * (weight * self.crew.world))
            loss += weight * cost.detach()
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), train.clip)
        self.optimizer.step()
        self.step += 1
        self.ema.update(self.network, self.step)
        return {"loss": loss, "gradient_norm": whole_tensor(norm.detach()), "learning_rate": rate}

    def _batch(self) -> tuple[Tensor, ...]:
        """This process's rows of the next batch, which is drawn whole, so that the draws are the same everywhere.

        Noisy tokens, levels, queried sites, labels (some dropped), and the clean tokens and levels at the sites; for
        "binary-sampled" three numbers for each of them.
        """
        x_0, labels = self.training.rows(self.order.next())  # (b, l), (b,)
        x_t, levels, sites = self.corrupt(x_0)  # (b, l), (b, l), (k,)
        dropped = torch.rand(len(labels), generator=self.generator) < self.config.train.class_dropout
        labels = labels.masked_fill(dropped, self.config.network.classes)
        rows = [x_t, levels, labels, x_0[:, sites], levels[:, sites]]
        if self.config.objective.name == "binary-sampled":
            drawn = torch.rand((3, len(x_0) * len(sites)), generator=self.generator, dtype=torch.float64)
            rows.append(drawn.unflatten(1, (len(x_0), len(sites))).permute(1, 2, 0))  # (b, k, 3)
        batch = [value[self.own] for value in rows]
        if self.compiled and len(sites) == 1:  # a size of 1 is a graph of its own; the mean over two equals is the same
            sites = sites.repeat(2)
            batch[SITES + 1 :] = [value.repeat_interleave(2, dim=1) for value in batch[SITES + 1 :]]
        batch.insert(SITES, sites)
        return tuple(value.to(self.device, non_blocking=True) for value in batch)

    def _finite(self, values: Mapping[str, Any]) -> dict[str, float]:
        """Numbers in place of tensors, the loss that of the whole batch; all processes must ask."""
        numbers = {name: float(value) for name, value in values.items()}
        (numbers["loss"],) = self.crew.sum([numbers["loss"]])
        with self.crew.together():
            self._check_finite(numbers)
        return numbers

    def _check_finite(self, numbers: Mapping[str, float]) -> None:
        if not all(torch.isfinite(torch.tensor(number)) for number in numbers.values()):
            good = (
                f"the last good checkpoint is in {self.out}" if has_checkpoint(self.out) else "there is no checkpoint"
            )
            raise UserError(
                f"training diverged at step {self.step}",
                f"loss {numbers['loss']}, gradient norm {numbers['gradient_norm']}",
                f"{good}; go on with --resume and a lower train.learning_rate",
            )

    def _line(self, row: Mapping[str, float]) -> str:
        train = self.config.train
        left = time_left(
            step=self.step,
            steps=train.steps,
            seconds=60 * row["minutes"],
            minutes=train.max_minutes,
            steps_per_second=row["images_per_second"] / train.batch_size,
        )
        return (
            f"step {self.step}/{train.steps}  loss {row['loss']:.4f}  |g| {row['gradient_norm']:.2f}  "
            f"lr {row['learning_rate']:.2e}  {row['images_per_second']:.0f} images/s  {row['minutes']:.1f} min, {left}"
        )

    def averaged(self) -> Transformer:
        """A network with the averaged weights; if they are sharded, all processes must ask for it."""
        network = self.make_network().to(self.device)
        network.load_state_dict({name: whole_tensor(value) for name, value in self.ema.state.items()})
        return network.eval().requires_grad_(False)

    def _validate(self, log: Log | None) -> None:
        """Held-out figures; the processes take them in turn."""
        if not len(self.held_out):
            return
        network, own = self.averaged(), FIGURES[self.crew.rank :: self.crew.world]
        with self.crew.together(), self.fabric.autocast():
            found = held_out_nll(network, self.held_out, self.noise, seed=self.config.train.seed, figures=own)
        totals = self.crew.sum([found.get(name, 0.0) for name in FIGURES])
        values = dict(zip(FIGURES, totals, strict=True))
        values["nll"] = mean_nll(values)
        self._write(log, values)
        self.say(
            f"step {self.step}  held-out NLL {values['nll']:.4f} nats/token, "
            + "  ".join(
                f"{name.removeprefix('nll_')} {value:.3f}" for name, value in values.items() if name.count("_") == 2
            )
        )

    def _sample(self) -> None:
        """A grid of 16 pictures, if the tokenizer is at hand; training never fails for the lack of one."""
        if not (self.crew.first or self.crew.sharded):
            network = None
        else:
            network = self.averaged()
        with self.crew.together(), self.fabric.autocast():
            if network is not None and self.crew.first:
                try:
                    message = draw_grid(network, self.manifest, self._grid_path(), seed=self.config.train.seed)
                except Exception as error:  # whatever it is, hours of training must not end for a grid
                    message = f"no sample grid: {type(error).__name__}: {printable(error)}"
                if message:
                    self.say(message)

    def save(self) -> None:
        """Checkpoint and exported model, each whole; to be called by all processes."""
        if self.crew.sharded:
            save_sharded_checkpoint(self.out, self.state_dict(), self.crew)
        with self.crew.together():
            if self.crew.first and not self.crew.sharded:
                save_checkpoint(self.out, self.state_dict())
        average = {}
        for name, value in self.ema.state.items():
            tensor = whole_tensor(value)
            if self.crew.first:
                average[name] = tensor.cpu() if self.crew.sharded else tensor
        with self.crew.together():
            if self.crew.first:
                self._export(average)
        self._saved_step = self.step

    def _export(self, average: Mapping[str, Tensor]) -> None:
        config = plain(self.config)
        export_model(
            self.out / "model",
            average,
            network=config["network"],
            tokenizer=config["tokenizer"],
            class_names=list(self.manifest.class_names),
            training={
                **{part: config[part] for part in ("data", "objective", "train")},
                "step": self.step,
                "minutes": round(self.clock.seconds / 60, 2),
                "pictures": len(self.training),
            },
            presets=config["presets"] or PRESETS,
            dtype=getattr(torch, self.config.train.weights_dtype),
        )


SITES = 2
"""Place of the queried sites, which all rows have in common, in a batch."""


def share_rows(batch_size: int, rank: int, world: int, accumulate: int) -> tuple[slice, list[slice]]:
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
