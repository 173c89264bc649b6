"""The config of a training run, typed and checked.

One YAML file holds a whole run. `load_config` fills a dataclass from it and from ``key=value`` overrides.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import field, fields
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from ggm_image.network import NetworkConfig
from ggm_image.network.config import Classes, CodebookSize, Grid
from ggm_image.objective import LOSSES
from ggm_image.runtime.precision import PRECISIONS
from ggm_image.sampler.settings import Settings
from ggm_image.training.loggers import logger_names
from ggm_image.training.optim import OPTIMIZERS, SCHEDULES
from ggm_image.validation import (
    Fraction,
    NaturalFloat,
    NaturalInt,
    Number,
    PositiveFloat,
    PositiveInt,
    Whole,
    build,
    checked,
    one_of,
)

PositiveFraction = Annotated[Number, Field(gt=0, le=1)]


@checked("tokenizer")
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


@checked("network")
class NetworkEntries(NetworkConfig):
    """Sizes of the network as a config states them; null, or left out, takes what the token cache says.

    `dataset.fit_to_cache` puts a complete `NetworkConfig` in its place, so all other code sees numbers.
    """

    codebook_size: CodebookSize | None = None  # type: ignore[assignment]
    classes: Classes | None = None  # type: ignore[assignment]
    grid: Grid | None = None  # type: ignore[assignment]


def _entries(value: Any) -> Any:
    return build(NetworkEntries, value) if isinstance(value, Mapping) else value


def complete_network(entries: NetworkConfig, *, codebook_size: int, classes: int, grid: Sequence[int]) -> NetworkConfig:
    """The network of a config, with these facts for what the config leaves open."""
    known = {"codebook_size": codebook_size, "classes": classes, "grid": list(grid)}
    stated = {entry.name: getattr(entries, entry.name) for entry in fields(NetworkConfig)}
    return NetworkConfig(**stated | {name: value for name, value in known.items() if stated[name] is None})


@checked("data")
class DataConfig:
    """Where validation tokens come from.

    Attributes:
        val: a token cache of validation images, of the same tokenizer; if empty, ``holdout`` images of the training
            cache, chosen by ``train.seed``, are never trained on.
        holdout: number of images; at most a tenth of the cache is taken. 0 trains on everything.
    """

    val: str = ""
    holdout: NaturalInt = 1000


@checked("objective")
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

    name: Annotated[str, one_of(LOSSES)] = "binary"
    contrast: PositiveFloat = 64.0
    keep: Fraction = 0.5
    masked: Fraction = 0.3
    cosine: Fraction = 0.4
    lattice: Fraction = 0.5


def _compile(value: Any) -> Any:
    if not isinstance(value, bool) and value != "auto":
        raise ValueError("must be true, false or auto")
    return value


def _logger(value: Any) -> Any:
    logger_names(value)
    return value


@checked("train")
class OptimisationConfig:
    """How to train, of any network. A run ends at ``steps`` or after ``max_minutes``, whichever is first.

    Attributes:
        steps: optimizer steps.
        max_minutes: wall-clock minutes of training over all resumptions, or null; compiling does not count. The
            learning rate falls by the larger of the two shares that are done, so a run that is cut by time still ends
            at its lowest rate.
        batch_size: images in a step, of all processes together.
        optimizer: adamw, or muon: hidden matrices of the blocks by Muon, all else by AdamW, see `optim.Muon`. muon
            needs whole matrices, so it does not work with fsdp.
        learning_rate: peak rate, of both optimizers.
        schedule: of the rate after the warm-up: cosine, or wsd: constant, then linear to zero.
        final_share: the rate at the end of cosine, as a share of the peak.
        decay_fraction: last share of the run in which wsd falls to zero, in (0, 1].
        warmup_steps: steps of linear warm-up; a short run takes at most a tenth of its time for it.
        ema_decay: of the moving average of the weights, min(ema_decay, (1 + step) / (10 + step)).
        precision: bf16-mixed, 32-true, or auto: bf16-mixed where the device has bf16 in hardware, else 32-true.
        compile: whether to compile the blocks and the loss with torch.compile, which takes a minute or two that do not
            count as training time: true, false, or auto, see `runtime.compile.compile_pays`.
        seed: of initial weights, data order and noise; seeds are multiplied and added to where torch takes 64 bits.
        log_every: steps between lines of log.csv.
        logger: where the same figures and the sample grids go besides log.csv, which is always written: tensorboard,
            wandb, csv for nothing else; a list, or names separated by commas.
        sample_every: steps between sample grids; 0 for none.
        checkpoint_minutes: minutes between checkpoints.
    """

    steps: PositiveInt = 20_000
    max_minutes: PositiveFloat | None = None
    batch_size: Annotated[Whole, Field(gt=0, le=1 << 20)] = 128
    optimizer: Annotated[str, one_of(OPTIMIZERS)] = "adamw"
    learning_rate: PositiveFloat = 1e-3
    schedule: Annotated[str, one_of(SCHEDULES)] = "cosine"
    final_share: Fraction = 0.01
    decay_fraction: PositiveFraction = 0.25
    warmup_steps: NaturalInt = 300
    ema_decay: Fraction = 0.999
    precision: Annotated[str, one_of(PRECISIONS)] = "auto"
    compile: Annotated[Any, AfterValidator(_compile)] = "auto"
    seed: Annotated[Whole, Field(ge=0, le=1 << 40)] = 0
    log_every: PositiveInt = 20
    logger: Annotated[Any, AfterValidator(_logger)] = "tensorboard"
    sample_every: NaturalInt = 1000
    checkpoint_minutes: NaturalFloat = 5.0


@checked("train", renamed={"validate_pictures": "validate_images"})
class TrainConfig(OptimisationConfig):
    """How to train a generator.

    Attributes:
        accumulate: pieces that each process works through one after the other, for less memory.
        activation_checkpointing: compute the blocks again in the backward pass instead of keeping what they need.
        strategy: of several processes: ddp (each holds everything), fsdp (weights, gradients, optimizer and average are
            spread over them), or auto, which is ddp.
        weight_decay: on matrices, a head of its own included; vectors, embeddings and a head tied to one have none.
        betas: of AdamW.
        clip: largest norm of the gradient.
        class_dropout: share of images trained without their class, for guidance.
        start_from_codes: initialise the embeddings of codes that look similar with similar vectors, if the tokenizer is
            available.
        validate_every: steps between validation measurements; 0 for the end alone.
        validate_images: number of validation images to measure, at most.
        weights_dtype: of the exported weights, bfloat16 or float32.
    """

    accumulate: PositiveInt = 1
    activation_checkpointing: bool = False
    strategy: Annotated[str, one_of(("auto", "ddp", "fsdp"))] = "auto"
    weight_decay: Annotated[Number, Field(ge=0, le=1000)] = 0.05
    betas: Annotated[list[Annotated[Number, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)] = field(
        default_factory=lambda: [0.9, 0.98]
    )
    clip: PositiveFloat = 1.0
    class_dropout: Fraction = 0.1
    start_from_codes: bool = True
    validate_every: NaturalInt = 1000
    validate_images: PositiveInt = 1000
    weights_dtype: Annotated[str, one_of(("bfloat16", "float32"))] = "bfloat16"


@checked()
class GeneratorConfig:
    """A whole run of `train`: the network, its tokenizer, its loss, its optimisation, and how to sample from it.

    Classes, grid, codebook and tokenizer are those of the token cache, and need not be stated.

    Attributes:
        start: a trained model to start from, by name or folder, of the same tokenizer and sizes. All weights are
            copied; a class of the same name keeps its embedding, any other starts from the null class. Empty to train
            from scratch.
    """

    format_version: int = 1
    start: str = ""
    network: Annotated[NetworkConfig, BeforeValidator(_entries)] = field(default_factory=NetworkEntries)
    tokenizer: TokenizerRef = field(default_factory=TokenizerRef)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    presets: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # a model whose presets cannot be read would only fail after hours, when it is loaded
        for entries in self.presets.values():
            Settings.of(entries)


def digits(value: float) -> str:
    """Two significant digits, without an exponent."""
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}"


def duration(seconds: float) -> str:
    """A long time in words: minutes, hours, or days and hours."""
    days, rest = divmod(seconds, 86_400)
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{days:.0f} days " * (days >= 1) + f"{rest / 3600:.1f} h"
