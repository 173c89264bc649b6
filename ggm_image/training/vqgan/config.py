"""The config of a run of `train-tokenizer`, typed and checked."""

from dataclasses import field
from typing import Annotated

from pydantic import Field

from ggm_image.tokenizers.vq.vqgan import VQGANConfig
from ggm_image.training.config import OptimisationConfig, PositiveFraction
from ggm_image.validation import Fraction, NaturalFloat, NaturalInt, PositiveFloat, PositiveInt, Whole, checked, one_of


@checked("loss")
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

    l1: NaturalFloat = 1.0
    l2: NaturalFloat = 2.0
    commitment: NaturalFloat = 0.25
    perceptual: NaturalFloat = 1.0
    perceptual_weights: str = "download"
    perceptual_size: NaturalInt = 0
    perceptual_images: PositiveFraction = 1.0
    adversarial: NaturalFloat = 0.5
    matching: NaturalFloat = 1.0
    adversarial_start: Fraction = 0.5
    discriminator_width: Annotated[Whole, Field(gt=0, le=1 << 12)] = 64
    discriminator_layers: Annotated[Whole, Field(gt=0, le=8)] = 2
    discriminator_rate: PositiveFloat = 2e-4


@checked("train")
class TokenizerTrain(OptimisationConfig):
    """How to train a tokenizer; the discriminator is always trained by AdamW.

    Attributes:
        flip: mirror half of the images.
        codebook_decay: of the moving averages that carry the codes.
        restart_every: steps between restarts of dead codes.
        restart_until: share of the run after which no code is restarted.
        decoder_only: freeze encoder and codes: token caches and models made with ``start`` then work with the new
            decoder.
        weights_dtype: of the exported weights, float16 or float32.
    """

    steps: PositiveInt = 30_000
    batch_size: Annotated[Whole, Field(gt=0, le=1 << 20)] = 64
    final_share: Fraction = 0.02
    warmup_steps: NaturalInt = 200
    codebook_decay: Fraction = 0.99
    restart_every: PositiveInt = 50
    restart_until: Fraction = 0.8
    decoder_only: bool = False
    flip: bool = True
    log_every: PositiveInt = 50
    weights_dtype: Annotated[str, one_of(("float16", "float32", "bfloat16"))] = "float16"


@checked()
class TokenizerTrainConfig:
    """A whole run of `train-tokenizer`.

    Attributes:
        name, licence: of what is exported.
        start: known name, folder or checkpoint of a VQGAN whose weights the training starts from; its sizes take the
            place of ``architecture``. Empty for a new one.
    """

    name: str = "my-tokenizer"
    licence: str = "unknown"
    start: str = ""
    architecture: VQGANConfig = field(default_factory=VQGANConfig)
    loss: TokenizerLoss = field(default_factory=TokenizerLoss)
    train: TokenizerTrain = field(default_factory=TokenizerTrain)
