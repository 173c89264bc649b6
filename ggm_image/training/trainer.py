"""Training the denoiser on a token cache.

A step: clean tokens x_0 and classes from the cache; levels and queried sites as a random schedule would show them;
x_t = noise on x_0 by the levels, the mask id at the queried sites; the network's clean-token logits there; the loss.

All processes generate the same batch with the same noise, and each works on its own rows of it: neither the loss nor
the order of the data depends on the number of processes.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ggm_image.data.token_cache.manifest import Manifest
from ggm_image.errors import UserError, printable
from ggm_image.network import Transformer
from ggm_image.pipelines.model_weights import PRESETS, export_model
from ggm_image.runtime.precision import choose_precision
from ggm_image.schedule import Query, random_levels, random_query
from ggm_image.training.batches import ResumableSampler, fits_on_device, move_together, rows_of_rank, sampling_device
from ggm_image.training.checkpoint import (
    OTHER_DEVICE,
    generator_state,
    has_checkpoint,
    kind_of_run,
    random_state,
    save_checkpoint,
    save_sharded_checkpoint,
    set_generator_state,
    set_random_state,
)
from ggm_image.training.config import GeneratorConfig
from ggm_image.training.corruption import cumulative_noise, replace_by_noise
from ggm_image.training.criterion import Criterion
from ggm_image.training.dataset import TokenSet
from ggm_image.training.distributed import DistributedContext, make_fabric
from ggm_image.training.evaluation import FIGURES, mean_nll, sample_grid, val_nll
from ggm_image.training.initialization import initialize_network
from ggm_image.training.logging import to_stderr
from ggm_image.training.loop import TrainingLoop
from ggm_image.training.optim import EMA, OptimizerSettings, make_optimizer, regrouped
from ggm_image.training.sharded_state import cut, whole, whole_tensor
from ggm_image.training.signals import GracefulStop
from ggm_image.training.text_evaluation import bits_per_byte, sample_texts, text_tokenizer_of


class GeneratorTrainer(TrainingLoop):
    """One run; all that changes is in ``state_dict``.

    Attributes:
        block: queried sites of every step; None to sample them as the samplers will query them.
    """

    COLUMNS = ("loss", "gradient_norm", "learning_rate", "images_per_second", "minutes", "nll", *FIGURES)
    FOLDERS = ("model", "samples")
    block: int | None = None

    def __init__(
        self,
        config: GeneratorConfig,
        manifest: Manifest,
        training: TokenSet,
        val_set: TokenSet,
        out: Path,
        *,
        device: str = "auto",
        report: Callable[[str], None] | None = None,
        context: DistributedContext | None = None,
    ) -> None:
        train = config.train
        context = context or DistributedContext(make_fabric(device, train.precision))
        super().__init__(config, train, out, context=context, say=report or to_stderr)
        self.config, self.manifest = config, manifest
        self.training, self.held_out = training, val_set
        self.record: dict[str, Any] = {}
        self.fabric = self.context.fabric
        self.own, self.pieces = rows_of_rank(
            train.batch_size, self.context.rank, self.context.world_size, train.accumulate
        )
        self.device = self.fabric.device
        train.precision = choose_precision(train.precision, self.device)[0]
        if self.device.type == "cpu":
            # queries and keys are normalised, so the scores are small and safe in half precision
            torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # the CPU reads it too

        torch.manual_seed(train.seed)
        network = self.make_network()
        if not has_checkpoint(out):
            initialize_network(network, config, manifest, self.say)
        network.recompute = train.activation_checkpointing
        self.network = network
        self.order = ResumableSampler(len(training), train.batch_size, train.seed)
        self.generator = torch.Generator().manual_seed(train.seed + 1)
        self.sampling_device, self.noise_generator = sampling_device(self.device), self.generator
        if self.sampling_device.type != "cpu":
            self.noise_generator = torch.Generator(self.sampling_device).manual_seed(train.seed + 1)
        self._resident = training if self.sampling_device.type == "cpu" else None
        if fits_on_device(training.size, self.sampling_device):
            self._resident = training.to(self.sampling_device)
        self._averaged: Transformer | None = None
        self.noise = torch.full((config.network.codebook_size,), 1 / config.network.codebook_size, device=self.device)
        criterion = self.make_criterion(network)
        self._cumulative = cumulative_noise(self.noise.to(self.sampling_device))
        if self.compile_if_it_pays(self.device):
            network.compile_blocks()
            criterion.compile_head()
        self.criterion = self.fabric.setup_module(criterion)
        self.ema = EMA(network, train.ema_decay)
        settings = OptimizerSettings(
            learning_rate=train.learning_rate,
            weight_decay=train.weight_decay,
            betas=(train.betas[0], train.betas[1]),
            fused=self.device.type in ("cpu", "cuda"),
            bf16=train.precision == "bf16-mixed",
        )
        optimizer = make_optimizer(train.optimizer, network, settings, sharded=self.context.sharded)
        self.optimizer = self.fabric.setup_optimizers(optimizer)

    def make_network(self) -> Transformer:
        """The untrained network; another architecture overrides this."""
        return Transformer(self.config.network)

    def make_criterion(self, network: Transformer) -> Criterion:
        """The loss of the run; another training method overrides this, or `corrupt`, or both."""
        return Criterion(network, self.config.objective, self.noise)

    def query(self) -> Query:
        """The sites that the next step queries, on the CPU."""
        law, (height, width) = self.config.objective, self.config.network.grid
        return random_query(
            height, width, generator=self.generator, cosine=law.cosine, lattice=law.lattice, block=self.block
        )

    def corrupt(self, x_0: Int[Tensor, "b l"], query: Query) -> tuple[Int[Tensor, "b l"], Float[Tensor, "b l"]]:
        """What the network is shown of clean tokens: tokens, and the level of each.

        Everything is on `sampling_device`, the device of `noise_generator`; nothing may wait for it.
        """
        height, width = self.config.network.grid
        levels = random_levels(
            query, len(x_0), height, width, generator=self.noise_generator, masked=self.config.objective.masked
        )
        x_t = self.add_noise(x_0, levels)
        return x_t.index_fill_(1, query.sites, self.config.network.codebook_size), levels

    def add_noise(self, x_0: Int[Tensor, "b l"], levels: Float[Tensor, "b l"]) -> Int[Tensor, "b l"]:
        """Replace each token by noise unless it stays, with the probability in ``levels``."""
        codes = self.config.network.codebook_size
        return replace_by_noise(x_0, levels, self._cumulative, codes, generator=self.noise_generator)

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and strings only; of sharded tensors, what this process holds."""
        return {
            "format_version": 1,
            "config": asdict(self.config),
            "record": self.record,
            "step": self.step,
            "seconds": self.clock.seconds,
            "network": self.network.state_dict(),
            "ema": self.ema.state,
            "optimizer": self.optimizer.state_dict(),
            "order": self.order.state_dict(),
            "generator": self.generator.get_state(),
            "noise_generator": generator_state(self.noise_generator),
            "random": random_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume exactly where ``state`` was taken; `train_generator` has compared its record."""
        with kind_of_run("train"):
            weights = {part: state[part] for part in ("network", "ema", "optimizer")}
            weights = cut(weights, self.context.mesh) if self.context.sharded else whole(weights)
            self.network.load_state_dict(weights["network"])
            self.ema.load(weights["ema"])
            self.optimizer.load_state_dict(regrouped(weights["optimizer"], self.network))
            self.order.load_state_dict(state["order"])
            self.generator.set_state(state["generator"])
            set_random_state(state["random"])
            self.resume_at(state["step"], state["seconds"])
            self._load_noise_generator(state)

    def _load_noise_generator(self, state: Mapping[str, Any]) -> None:
        saved = state.get("noise_generator", state["generator"])
        if self.noise_generator is self.generator:
            same = isinstance(saved, Tensor) or saved["device"] == "cpu"
        else:
            same = set_generator_state(self.noise_generator, saved, self.config.train.seed + 1 + self.step)
        if not same:
            self.say(OTHER_DEVICE)

    def advance(self) -> dict[str, Any]:
        return self.train_step()

    def report(self, numbers: Mapping[str, float], steps_per_second: float, left: str) -> tuple[dict[str, float], str]:
        train = self.config.train
        row = {**numbers, "images_per_second": steps_per_second * train.batch_size}
        return row, (
            f"step {self.step}/{train.steps}  loss {row['loss']:.4f}  |g| {row['gradient_norm']:.2f}  "
            f"lr {row['learning_rate']:.2e}  {row['images_per_second']:.0f} images/s  {row['minutes']:.1f} min, {left}"
        )

    def measure(self, stop: GracefulStop) -> None:
        """The held-out figures and the sample grid that are due at this step, unless they are there already."""
        train, done = self.config.train, self.progress >= 1
        validate = done or bool(train.validate_every and self.step % train.validate_every == 0)
        sample = bool(train.sample_every and (done or self.step % train.sample_every == 0))
        if self._resumed_at == self.step:
            there = (self.log.has("nll"), self._grid_path().exists()) if self.log is not None else (False, False)
            has_figures, has_grid = self.context.sum(list(map(float, there)))
            validate, sample = validate and not has_figures, sample and not has_grid
        if validate:
            stop.optional(self._validate)
        if sample:
            stop.optional(self._sample)
            if self.log is not None and self._grid_path().exists():
                self.log.show(self.step, "samples", self._grid_path())

    def _grid_path(self) -> Path:
        suffix = "txt" if self.manifest.modality == "text" else "png"
        return self.out / "samples" / f"{self.step:07d}.{suffix}"

    def train_step(self) -> dict[str, Any]:
        """One update; returns tensors, so that nothing waits. The loss is this process's part of the batch's mean."""
        train, rate = self.config.train, self.rate
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
                self.fabric.backward(cost * (weight * self.context.world_size))
            loss += weight * cost.detach()
        return {"loss": loss, "gradient_norm": whole_tensor(self.update().detach()), "learning_rate": rate}

    def update(self) -> Tensor:
        """Change the weights by their gradients, and the average with them; returns the norm before it is clipped."""
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.train.clip)
        self.optimizer.step()
        self.step += 1
        self.ema.update(self.network, self.step)
        return norm

    def _batch(self) -> tuple[Tensor, ...]:
        """This process's rows of the next batch. Every process samples all of it, so that random numbers agree.

        Noisy tokens, levels, queried sites, labels (some dropped), and the clean tokens and levels at the sites; for
        "binary-sampled" three numbers for each of them.
        """
        x_0, labels, query = self._clean()  # (b, l), (b,)
        x_t, levels = self.corrupt(x_0, query)  # (b, l), (b, l)
        sites, generator, where = query.sites, self.noise_generator, self.sampling_device
        dropped = torch.rand(len(labels), generator=generator, device=where) < self.config.train.class_dropout
        labels = labels.masked_fill(dropped, self.config.network.classes)
        rows = [x_t, levels, labels, x_0.index_select(1, sites), levels.index_select(1, sites)]
        if self.config.objective.name == "binary-sampled":
            size = (3, len(x_0) * len(sites))
            sampled = torch.rand(size, generator=generator, device=where, dtype=torch.float64)
            rows.append(sampled.unflatten(1, (len(x_0), len(sites))).permute(1, 2, 0))  # (b, k, 3)
        batch = [value[self.own] for value in rows]
        if self.compiled and len(sites) == 1:  # a size of 1 is a graph of its own; the mean over two equals is the same
            sites = sites.repeat(2)
            batch[SITES + 1 :] = [value.repeat_interleave(2, dim=1) for value in batch[SITES + 1 :]]
        batch.insert(SITES, sites)
        return tuple(value.to(self.device, non_blocking=True) for value in batch)

    def _clean(self) -> tuple[Int[Tensor, "b l"], Int[Tensor, " b"], Query]:
        """Clean tokens, labels and queried sites of the next step, on `sampling_device`; one copy goes there."""
        rows, query, where = self.order.next(), self.query(), self.sampling_device
        shared = [query.sites] if query.visited is None else [query.sites, query.visited]
        if self._resident is None:
            x_0, labels, *shared = move_together([*self.training.rows(rows), *shared], where)
        else:
            rows, *shared = move_together([rows, *shared], where)
            x_0, labels = self._resident.rows(rows)
        return x_0, labels, Query(shared[0], shared[1].bool() if len(shared) > 1 else None)

    def numbers(self, values: Mapping[str, Any]) -> dict[str, float]:
        found = super().numbers(values)
        (found["loss"],) = self.context.sum([found["loss"]])
        return found

    def averaged(self) -> Transformer:
        """A network whose weights are the average itself, to be read only; of sharded weights a new copy, for which all
        processes must ask."""
        if self._averaged is not None:
            return self._averaged
        with torch.random.fork_rng(devices=[]):
            network = self.make_network().to(self.device)
        state = {name: whole_tensor(value) for name, value in self.ema.state.items()}
        network.load_state_dict(state, assign=True)
        network.eval().requires_grad_(False)
        if not self.context.sharded:
            self._averaged = network
        return network

    def _validate(self) -> None:
        """Held-out figures; the processes take them in turn."""
        if not len(self.held_out):
            return
        if self.progress >= 1:  # of a short run it is a large part
            self.say(f"step {self.step}  validating on {len(self.held_out):,} rows; then the run ends")
        network, own = self.averaged(), FIGURES[self.context.rank :: self.context.world_size]
        with self.context.together(), self.fabric.autocast():
            found = val_nll(network, self.held_out, self.noise, seed=self.config.train.seed, figures=own)
        totals = self.context.sum([found.get(name, 0.0) for name in FIGURES])
        values = dict(zip(FIGURES, totals, strict=True))
        values["nll"] = mean_nll(values)
        self.write_row(values)
        self.say(
            f"step {self.step}  held-out NLL {values['nll']:.4f} nats/token, "
            + "  ".join(
                f"{name.removeprefix('nll_')} {value:.3f}" for name, value in values.items() if name.count("_") == 2
            )
        )
        self._say_bits(network)

    def _say_bits(self, network: Transformer) -> None:
        """Of text, at the end of a run: the bound on held-out bits per byte."""
        if self.manifest.modality != "text" or self.progress < 1:
            return
        with self.context.together(), self.fabric.autocast():
            if self.context.is_main_process:
                try:
                    tokenizer = text_tokenizer_of(self.manifest)
                except UserError as error:  # a run does not end for the lack of a tokenizer
                    self.say(f"no bits per byte: {error}")
                    return
                bits = bits_per_byte(network, self.held_out, tokenizer=tokenizer, seed=self.config.train.seed)
                self.say(f"step {self.step}  held-out text: at most {bits:.3f} bits per byte")

    def _sample(self) -> None:
        """Write a grid of 16 samples if the tokenizer is available; a failure never ends training."""
        network = self.averaged() if self.context.is_main_process or self.context.sharded else None
        with self.context.together(), self.fabric.autocast():
            if network is not None and self.context.is_main_process:
                try:
                    write = sample_texts if self.manifest.modality == "text" else sample_grid
                    message = write(network, self.manifest, self._grid_path(), seed=self.config.train.seed)
                except Exception as error:  # no error in a sample grid may end hours of training
                    message = f"no sample grid: {type(error).__name__}: {printable(error)}"
                if message:
                    self.say(message)

    def save(self) -> None:
        """Checkpoint and exported model, each whole; to be called by all processes."""
        if self.context.sharded:
            save_sharded_checkpoint(self.out, self.state_dict(), self.context)
        with self.context.together():
            if self.context.is_main_process and not self.context.sharded:
                save_checkpoint(self.out, self.state_dict())
        average = {}
        for name, value in self.ema.state.items():
            tensor = whole_tensor(value)
            if self.context.is_main_process:
                average[name] = tensor.cpu() if self.context.sharded else tensor
        with self.context.together():
            if self.context.is_main_process:
                self._export(average)

    def _export(self, average: Mapping[str, Tensor]) -> None:
        config = asdict(self.config)
        export_model(
            self.out / "model",
            average,
            network=config["network"],
            tokenizer=config["tokenizer"] | ({"modality": "text"} if self.manifest.modality == "text" else {}),
            class_names=list(self.manifest.class_names),
            training={
                **{part: config[part] for part in ("data", "objective", "train")},
                "step": self.step,
                "minutes": round(self.clock.seconds / 60, 2),
                "images": len(self.training),
            },
            presets=config["presets"] or PRESETS,
            dtype=getattr(torch, self.config.train.weights_dtype),
        )


SITES = 2
"""Place of the queried sites, which all rows have in common, in a batch."""
