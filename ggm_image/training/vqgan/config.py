"""Everything that a run of `train-tokenizer` can be told, with its checks."""

from dataclasses import dataclass, field
from typing import Any

from ggm_image.io.config_schema import check_choice, check_numbers
from ggm_image.runtime.precision import PRECISIONS
from ggm_image.tokenizers.vq.vqgan import VQGANConfig
from ggm_image.training.config import check_compile
from ggm_image.training.loggers import logger_names
from ggm_image.training.optim import OPTIMIZERS, SCHEDULES


@dataclass(kw_only=True)
class TokenizerLoss:
    """Weights of the terms of the loss; images in [-1, 1].

    Attributes:
        l1, l2: mean absolute and mean squared error.
        commitment: mean squared distance of latents to their codes.
        perceptual: distance on the features of a trained network.
        perceptual_weights: which network: ``download`` or a folder for LPIPS, ``timm:NAME``, or a file of
            train-perceptual; see `perceptual.load_perceptual`.
        perceptual_size: pixels a side to which images are enlarged for ``timm:NAME``; 0 leaves them as they are.
        perceptual_images: share of each batch that the perceptual loss looks at, in (0, 1].
        adversarial: score of the patch discriminator, times the adaptive weight of the paper.
        matching: distance of the discriminator's features, times an adaptive weight likewise.
        adversarial_start: share of the run after which both start, in [0, 1]; 1 is never.
        discriminator_width, discriminator_layers: of taming's NLayerDiscriminator.
        discriminator_rate: its learning rate.
    """

    l1: float = 1.0
    l2: float = 2.0
    commitment: float = 0.25
    perceptual: float = 1.0
    perceptual_weights: str = "download"
    perceptual_size: int = 0
    perceptual_images: float = 1.0
    adversarial: float = 0.5
    matching: float = 1.0
    adversarial_start: float = 0.5
    discriminator_width: int = 64
    discriminator_layers: int = 2
    discriminator_rate: float = 2e-4

    def __post_init__(self) -> None:
        check_numbers(
            self,
            "loss",
            positive=("discriminator_width", "discriminator_layers", "discriminator_rate", "perceptual_images"),
            natural=("l1", "l2", "commitment", "perceptual", "perceptual_size", "adversarial", "matching"),
            shares=("adversarial_start", "perceptual_images"),
        )


@dataclass(kw_only=True)
class TokenizerTrain:
    """Optimisation; a run ends at ``steps`` or after ``max_minutes``, whichever is first.

    Attributes:
        steps, max_minutes, batch_size, optimizer, learning_rate, schedule, final_share, decay_fraction, warmup_steps,
            ema_decay, seed, log_every, logger, checkpoint_minutes, precision, compile: as in `config.TrainConfig`; the
            discriminator is always trained by AdamW.
        flip: mirror half of the images.
        codebook_decay: of the moving averages that carry the codes.
        restart_every: steps between restarts of dead codes.
        restart_until: share of the run after which no code is restarted.
        decoder_only: leave encoder and codes as they are: token caches and models made with ``start`` go on with the
            new decoder.
        sample_every: steps between images of reconstructions; 0 for none.
        weights_dtype: of the exported weights, float16 or float32.
    """

    steps: int = 30_000
    max_minutes: float | None = None
    batch_size: int = 64
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    final_share: float = 0.02
    decay_fraction: float = 0.25
    warmup_steps: int = 200
    ema_decay: float = 0.999
    codebook_decay: float = 0.99
    restart_every: int = 50
    restart_until: float = 0.8
    decoder_only: bool = False
    flip: bool = True
    log_every: int = 50
    logger: Any = "tensorboard"
    sample_every: int = 1000
    checkpoint_minutes: float = 5.0
    precision: str = "auto"
    compile: Any = "auto"
    seed: int = 0
    weights_dtype: str = "float16"

    def __post_init__(self) -> None:
        check_numbers(
            self,
            "train",
            positive=("steps", "batch_size", "learning_rate", "decay_fraction", "restart_every", "log_every"),
            natural=("warmup_steps", "sample_every", "checkpoint_minutes"),
            shares=("final_share", "decay_fraction", "ema_decay", "codebook_decay", "restart_until"),
        )
        check_choice("train.precision", self.precision, PRECISIONS)
        check_compile(self.compile)
        logger_names(self.logger)
        check_choice("train.optimizer", self.optimizer, tuple(OPTIMIZERS))
        check_choice("train.schedule", self.schedule, tuple(SCHEDULES))
        check_choice("train.weights_dtype", self.weights_dtype, ("float16", "float32", "bfloat16"))


@dataclass(kw_only=True)
class TokenizerTrainConfig:
    """A whole run of `train-tokenizer`.

    Attributes:
        name, licence: of what is exported.
        start: known name, folder or checkpoint of a VQGAN whose weights the training goes on from; its sizes take the
            place of ``architecture``. Empty for a new one.
        architecture, loss, train: see there.
    """

    name: str = "my-tokenizer"
    licence: str = "unknown"
    start: str = ""
    architecture: VQGANConfig = field(default_factory=VQGANConfig)
    loss: TokenizerLoss = field(default_factory=TokenizerLoss)
    train: TokenizerTrain = field(default_factory=TokenizerTrain)
