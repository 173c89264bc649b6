"""What a training run is: typed, checked, and saved with the run as it was used.

One YAML file holds a whole run. `load_config` fills a dataclass from it and from ``key=value`` overrides; an unknown
key or a value of the wrong type is an error that names the nearest right key.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ggm_image.io.config_schema import check, check_choice, check_numbers
from ggm_image.network import NetworkConfig
from ggm_image.objective import LOSSES
from ggm_image.runtime.precision import PRECISIONS
from ggm_image.sampler.settings import Settings
from ggm_image.training.loggers import logger_names
from ggm_image.training.optim import OPTIMIZERS, SCHEDULES


@dataclass(kw_only=True)
class TokenizerRef:
    """The tokenizer whose codes the model learns; an empty entry takes what the token cache says.

    Attributes:
        name: in its config.yaml.
        sha256: of its weights.
        source: its folder, where it is not a shipped one; only used to find it again.
    """

    name: str = ""
    sha256: str = ""
    source: str = field(default="", compare=False)


@dataclass(kw_only=True)
class NetworkEntries(NetworkConfig):
    """Sizes of the network as a config states them; null, or left out, takes what the token cache says.

    `training_tokens.fit_to_cache` puts a complete `NetworkConfig` in its place, so all other code sees numbers.
    """

    codebook_size: int | None = None  # type: ignore[assignment]
    classes: int | None = None  # type: ignore[assignment]
    grid: list[int] | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        complete_network(self, codebook_size=1, classes=0, grid=(1, 1))  # checks what is stated


def complete_network(entries: NetworkConfig, *, codebook_size: int, classes: int, grid: Sequence[int]) -> NetworkConfig:
    """The network of a config, with these facts for what the config leaves open.

    Raises:
        UserError: sizes that are out of range, or do not go together.
    """
    known = {"codebook_size": codebook_size, "classes": classes, "grid": list(grid)}
    stated = {entry.name: getattr(entries, entry.name) for entry in fields(NetworkConfig)}
    return NetworkConfig(**stated | {name: value for name, value in known.items() if stated[name] is None})


@dataclass(kw_only=True)
class DataConfig:
    """Where held-out tokens come from.

    Attributes:
        val: a token cache of held-out images, of the same tokenizer; if empty, ``holdout`` images of the training
            cache, chosen by ``train.seed``, are never trained on.
        holdout: number of images; at most a tenth of the cache is taken. 0 trains on everything.
    """

    val: str = ""
    holdout: int = 1000

    def __post_init__(self) -> None:
        check_numbers(self, "data", natural=("holdout",))


@dataclass(kw_only=True)
class ObjectiveConfig:
    """The loss: see `ggm_image.objective`.

    Attributes:
        name: binary, binary-sampled, cross-entropy or cross-entropy-noisy.
        contrast: noise draws for each signal draw in ``binary``.
        keep: probability that a step leaves a token as it is, for ``binary-sampled``.
        masked: share of the rows that are trained as masked diffusion shows them: every level is 1, and the queried
            sites have no token. The others have levels of schedules of several sweeps.
        cosine: share of the steps that query as many sites as a cosine law says, any number of them; the others query
            60% of the sites at most.
        lattice: share of the steps whose queried sites are a block of a schedule, spread evenly; the others query a
            random set.
    """

    name: str = "binary"
    contrast: float = 64.0
    keep: float = 0.5
    masked: float = 0.3
    cosine: float = 0.4
    lattice: float = 0.5

    def __post_init__(self) -> None:
        check_choice("objective.name", self.name, LOSSES)
        check_numbers(self, "objective", positive=("contrast",), shares=("keep", "masked", "cosine", "lattice"))


@dataclass(kw_only=True)
class TrainConfig:
    """How to train. A run ends at ``steps`` or after ``max_minutes``, whichever is first.

    Attributes:
        steps: optimizer steps.
        max_minutes: wall-clock minutes of training over all resumptions, or null; compiling does not count. The
            learning rate falls by the larger of the two shares that are done, so a run that is cut by time still ends
            at its lowest rate.
        batch_size: images in a step, of all processes together.
        accumulate: pieces that each process works through one after the other, for less memory.
        activation_checkpointing: compute the blocks again in the backward pass instead of keeping what they need.
        strategy: of several processes: ddp (each holds everything), fsdp (weights, gradients, optimizer and average are
            spread over them), or auto, which is ddp.
        optimizer: adamw, or muon: hidden matrices of the blocks by Muon, all else by AdamW, see `optim.Muon`. muon
            needs whole matrices, so it does not work with fsdp.
        learning_rate: peak rate, of both optimizers.
        schedule: of the rate after the warm-up: cosine, or wsd: constant, then linear to zero.
        final_share: the rate at the end of cosine, as a share of the peak.
        decay_fraction: last share of the run in which wsd falls to zero, in (0, 1].
        warmup_steps: steps of linear warm-up; a short run takes at most a tenth of its time for it.
        weight_decay: on matrices, a head of its own included; vectors, embeddings and a head tied to one have none.
        betas: of AdamW.
        clip: largest norm of the gradient.
        ema_decay: of the moving average of the weights, min(ema_decay, (1 + step) / (10 + step)).
        class_dropout: share of images trained without their class, for guidance.
        precision: bf16-mixed, 32-true, or auto: bf16-mixed where the device has bf16 in hardware, else 32-true.
        compile: whether to compile the blocks and the loss with torch.compile, which takes a minute or two that do not
            count as training time: true, false, or auto, see `compilation.compile_pays`.
        start_from_codes: let the embeddings of codes that look alike start alike, where the tokenizer is at hand.
        seed: of initial weights, data order and noise.
        log_every: steps between lines of log.csv.
        logger: where the same figures and the sample grids go besides log.csv, which is always written: tensorboard,
            wandb, csv for nothing else; a list, or names separated by commas.
        validate_every: steps between held-out measurements; 0 for the end alone.
        validate_pictures: how many held-out images at most.
        sample_every: steps between sample grids; 0 for none.
        checkpoint_minutes: minutes between checkpoints.
        weights_dtype: of the exported weights, bfloat16 or float32.
    """

    steps: int = 20_000
    max_minutes: float | None = None
    batch_size: int = 128
    accumulate: int = 1
    activation_checkpointing: bool = False
    strategy: str = "auto"
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    final_share: float = 0.01
    decay_fraction: float = 0.25
    warmup_steps: int = 300
    weight_decay: float = 0.05
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    clip: float = 1.0
    ema_decay: float = 0.999
    class_dropout: float = 0.1
    precision: str = "auto"
    compile: Any = "auto"
    start_from_codes: bool = True
    seed: int = 0
    log_every: int = 20
    logger: Any = "tensorboard"
    validate_every: int = 1000
    validate_pictures: int = 1000
    sample_every: int = 1000
    checkpoint_minutes: float = 5.0
    weights_dtype: str = "bfloat16"

    def __post_init__(self) -> None:
        check_numbers(
            self,
            "train",
            positive=(
                "steps",
                "batch_size",
                "accumulate",
                "learning_rate",
                "clip",
                "log_every",
                "validate_pictures",
                "decay_fraction",
            ),
            natural=("warmup_steps", "weight_decay", "validate_every", "sample_every", "checkpoint_minutes"),
            shares=("final_share", "decay_fraction", "ema_decay", "class_dropout"),
        )
        check(
            len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas),
            "train.betas are two in [0, 1)",
            self.betas,
        )
        check_choice("train.precision", self.precision, PRECISIONS)
        check_compile(self.compile)
        logger_names(self.logger)
        check_choice("train.weights_dtype", self.weights_dtype, WEIGHTS_DTYPES)
        check_choice("train.strategy", self.strategy, STRATEGIES)
        check_choice("train.optimizer", self.optimizer, tuple(OPTIMIZERS))
        check_choice("train.schedule", self.schedule, tuple(SCHEDULES))


WEIGHTS_DTYPES = ("bfloat16", "float32")
STRATEGIES = ("auto", "ddp", "fsdp")


@dataclass(kw_only=True)
class GeneratorConfig:
    """A whole run of `train`: the network, its tokenizer, its loss, its optimisation, and how to draw from it.

    Classes, grid, codebook and tokenizer are those of the token cache, and need not be stated.

    Attributes:
        start: a trained model to go on from, by name or folder, of the same tokenizer and sizes: every weight is taken
            over; a class of the same name keeps its embedding, any other starts as no class in particular. Empty for
            a network of its own.
    """

    format_version: int = 1
    start: str = ""
    network: NetworkConfig = field(default_factory=NetworkEntries)
    tokenizer: TokenizerRef = field(default_factory=TokenizerRef)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    presets: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # a model whose presets cannot be read would be found out after hours, when it is loaded
        for name, entries in self.presets.items():
            check(isinstance(entries, dict), f"presets.{name} must hold sampler settings", entries)
            Settings.of(entries)


def digits(value: float) -> str:
    """Two significant digits, without an exponent."""
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}"


def duration(seconds: float) -> str:
    """A long time for people: minutes, hours, or days and hours."""
    days, rest = divmod(seconds, 86_400)
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{days:.0f} days " * (days >= 1) + f"{rest / 3600:.1f} h"


def check_compile(value: Any) -> None:
    """Raise UserError unless ``train.compile`` is true, false or auto."""
    check(isinstance(value, bool) or value == "auto", "train.compile must be true, false or auto", value)
