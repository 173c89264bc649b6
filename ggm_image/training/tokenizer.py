"""Training a VQGAN: reconstruction, codebook, patch discriminator (arXiv 2012.09841, section 3.1).

Where we differ from taming: the codebook follows the encoder by moving averages and dead codes restart at
latents of the batch (see `codebook`); the perceptual loss is optional, because its weights must be at hand; the
decoder can be trained alone, for tokens that stay as they are.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from omegaconf import OmegaConf
from torch import Tensor

from ggm_image.compilation import cannot_compile
from ggm_image.data.encode import Prefetch, check_image_size
from ggm_image.data.images import ImageSource, image_grid, open_source, save_png, to_model, to_uint8
from ggm_image.errors import UserError
from ggm_image.files import remove_temporaries, sha256_file, write_text
from ggm_image.tokenizers.registry import load_tokenizer
from ggm_image.tokenizers.vqgan import VQGAN, VQGANConfig
from ggm_image.training.codebook import CodebookEMA
from ggm_image.training.config import PRECISIONS, check_choice, check_numbers, load_config, plain, save_config
from ggm_image.training.engine import (
    Clock,
    DataOrder,
    Ema,
    Log,
    Stop,
    has_checkpoint,
    keep_freed_memory,
    learning_rate,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)
from ggm_image.training.perceptual import load_perceptual
from ggm_image.training.plots import plot_at_the_end
from ggm_image.weights import save_weights

MEMORY_LIMIT = 4 << 30  # bytes of decoded pictures that are kept; more are decoded anew every epoch


@dataclass(kw_only=True)
class TokenizerLoss:
    """Weights of the terms of the loss; images in [-1, 1].

    Attributes:
        l1, l2: mean absolute and mean squared error.
        commitment: mean squared distance of latents to their codes.
        perceptual: LPIPS.
        perceptual_weights: ``download`` or a folder; see `perceptual.load_perceptual`.
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
            positive=("discriminator_width", "discriminator_layers", "discriminator_rate"),
            natural=("l1", "l2", "commitment", "perceptual", "adversarial", "matching"),
            shares=("adversarial_start",),
        )


@dataclass(kw_only=True)
class TokenizerTrain:
    """Optimisation; a run ends at ``steps`` or after ``max_minutes``, whichever is first.

    Attributes:
        steps, max_minutes, batch_size, learning_rate, final_share, warmup_steps, ema_decay, seed, log_every,
            checkpoint_minutes, precision, compile: as in `config.TrainConfig`.
        flip: mirror half of the pictures.
        codebook_decay: of the moving averages that carry the codes.
        restart_every: steps between restarts of dead codes.
        restart_until: share of the run after which no code is restarted.
        decoder_only: leave encoder and codes as they are: token caches and models made with ``start`` go on with the
            new decoder.
        sample_every: steps between pictures of reconstructions; 0 for none.
        weights_dtype: of the exported weights, float16 or float32.
    """

    steps: int = 30_000
    max_minutes: float | None = None
    batch_size: int = 64
    learning_rate: float = 1e-3
    final_share: float = 0.02
    warmup_steps: int = 200
    ema_decay: float = 0.999
    codebook_decay: float = 0.99
    restart_every: int = 50
    restart_until: float = 0.8
    decoder_only: bool = False
    flip: bool = True
    log_every: int = 50
    sample_every: int = 1000
    checkpoint_minutes: float = 5.0
    precision: str = "bf16-mixed"
    compile: bool = True
    seed: int = 0
    weights_dtype: str = "float16"

    def __post_init__(self) -> None:
        check_numbers(
            self,
            "train",
            positive=("steps", "batch_size", "learning_rate", "restart_every", "log_every"),
            natural=("warmup_steps", "sample_every", "checkpoint_minutes"),
            shares=("final_share", "ema_decay", "codebook_decay", "restart_until"),
        )
        check_choice("train.precision", self.precision, PRECISIONS)
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


COLUMNS = ("minutes", "pixel", "psnr", "commitment", "perplexity", "dead", "restarted", "perceptual",
           "adversarial", "adversarial_weight", "matching", "matching_weight", "discriminator",
           "learning_rate")  # fmt: skip


class TokenizerTrainer:
    """Everything that changes while a tokenizer is trained, and one step of it."""

    def __init__(self, config: TokenizerTrainConfig, device: str) -> None:
        from taming.modules.discriminator.model import NLayerDiscriminator, weights_init

        self.loss, self.train, self.device = config.loss, config.train, torch.device(device)
        self.gradient_norm = 0.0
        torch.manual_seed(config.train.seed)
        try:
            self.model = VQGAN(config.architecture, name=config.name).to(self.device).train()
        except (AssertionError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
            what, fix = "architecture must be one of a VQGAN", "compare it with those in configs/"
            raise UserError(what, f"{type(error).__name__}: {error}", fix) from error
        self.model.quantize.requires_grad_(False)
        if config.train.decoder_only:
            self.model.encoder.requires_grad_(False)
            self.model.quant_conv.requires_grad_(False)
        self.model.decoder.give_pre_end = True  # the last layer is apart: its gradient norms weigh the GAN
        self.codebook = CodebookEMA(
            config.architecture.n_embed, config.architecture.embed_dim, config.train.codebook_decay
        ).to(self.device)
        self.discriminator = (
            NLayerDiscriminator(ndf=config.loss.discriminator_width, n_layers=config.loss.discriminator_layers)
            .apply(weights_init)
            .to(self.device)
        )
        self.perceptual = None
        if config.loss.perceptual > 0:
            self.perceptual = load_perceptual(config.loss.perceptual_weights)
            self.perceptual = self.perceptual and self.perceptual.to(self.device)
        weights = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(weights, lr=0.0, betas=(0.9, 0.99), weight_decay=0.0)
        self.d_optimizer = torch.optim.AdamW(
            self.discriminator.parameters(), lr=config.loss.discriminator_rate, betas=(0.5, 0.9), weight_decay=0.0
        )
        self.ema = Ema(self.model, config.train.ema_decay)
        self.generator = torch.Generator().manual_seed(config.train.seed)
        self.step, self.start_sha256 = 0, ""
        self.clock = Clock()
        if config.start:
            self.begin_from(starting_point(config.start))
        why = cannot_compile(self.device.type) if config.train.compile else ""
        if why:
            print(f"not compiled, so training is slower: {why}", file=sys.stderr, flush=True)
        maybe: Callable[..., Any] = torch.compile if config.train.compile and not why else (lambda f: f)
        self.encode, self.decode_body = maybe(self._encode), maybe(self._decode_body)

    def begin_from(self, tokenizer: VQGAN) -> None:
        """Take over a trained tokenizer's weights; its codes stay where they are, equally used so far."""
        self.model.load_state_dict(tokenizer.state_dict())
        self.ema = Ema(self.model, self.train.ema_decay)
        self.codebook.adopt(self.model.quantize.embedding.weight.data)
        self.start_sha256 = tokenizer.sha256

    def _encode(self, images: Tensor) -> Tensor:
        return self.model.latents(images)

    def _decode_body(self, codes: Tensor) -> Tensor:
        decoder = self.model.decoder
        return F.silu(decoder.norm_out(decoder(self.model.post_quant_conv(codes))))

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.train.precision == "bf16-mixed")

    def progress(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        by_time = self.clock.seconds / (60 * self.train.max_minutes) if self.train.max_minutes else 0.0
        return min(1.0, max(self.step / self.train.steps, by_time))

    def rate(self) -> float:
        train = self.train
        return learning_rate(
            train.learning_rate,
            step=self.step,
            warmup_steps=train.warmup_steps,
            progress=self.progress(),
            final_share=train.final_share,
        )

    def quantise(self, z: Float[Tensor, "n e gh gw"]) -> tuple[Tensor, Tensor, int]:
        """Straight-through codes (n, e, gh, gw), commitment loss, number of restarted codes."""
        weight = self.model.quantize.embedding.weight
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]).float()  # (m, e)
        if not bool(self.codebook.started):
            self.codebook.start(weight.data, flat.detach(), self.generator)
        with torch.no_grad():
            indices = self.model.quantize.nearest(flat)
            codes = weight[indices]
        commitment = F.mse_loss(flat, codes)
        n, e, h, w = z.shape
        if self.train.decoder_only:
            self.codebook.observe(indices)
            return codes.view(n, h, w, e).permute(0, 3, 1, 2), commitment, 0
        straight = flat + (codes - flat).detach()
        restarted = 0
        self.codebook.update(weight.data, flat.detach(), indices)
        if self.step % self.train.restart_every == 0 and self.progress() < self.train.restart_until:
            restarted = self.codebook.restart_dead(weight.data, flat.detach(), self.generator)
        return straight.view(n, h, w, e).permute(0, 3, 1, 2), commitment, restarted

    def train_step(self, images: Float[Tensor, "n 3 h w"]) -> dict[str, float]:
        """One update of encoder and codebook (unless they rest), decoder and, after its start, of the discriminator."""
        loss, adversarial = self.loss, self.progress() >= self.loss.adversarial_start
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        with self.autocast():
            z = self.encode(images)
            codes, commitment, restarted = self.quantise(z)
            reconstruction = self.model.decoder.conv_out(self.decode_body(codes)).float()
        error = reconstruction - images
        terms = {"pixel": loss.l1 * error.abs().mean() + loss.l2 * error.square().mean()}
        if self.perceptual is not None:
            with self.autocast():
                terms["perceptual"] = loss.perceptual * self.perceptual(reconstruction, images).float()
        if adversarial:
            with self.autocast():
                terms |= self._judged(images, reconstruction)
        gradient, weights = self._weighted_gradient(terms, reconstruction)
        self.optimizer.zero_grad(set_to_none=True)
        roots, gradients = [reconstruction], [gradient]
        if commitment.requires_grad:
            roots.append(loss.commitment * commitment)
            gradients.append(torch.ones_like(commitment))
        torch.autograd.backward(roots, gradients)
        self.gradient_norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0))
        self.optimizer.step()
        logs = {name: term.detach() for name, term in terms.items()} | weights
        if adversarial:
            logs["discriminator"] = self._discriminator_step(images, reconstruction.detach())
        self.step += 1
        self.ema.update(self.model, self.step)
        logs["psnr"] = 10 * torch.log10(4 / error.detach().square().mean())
        logs["commitment"] = commitment.detach()
        return {name: float(value) for name, value in logs.items()} | {"restarted": float(restarted)}

    def _judged(self, images: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """The discriminator's score of the reconstruction, and how far its features are from the original's.

        The second is the learned similarity of Larsen et al. (arXiv 1512.09300): a perceptual loss without
        weights from elsewhere.
        """
        real, fake, distances = images, reconstruction, []
        for layer in self.discriminator.main[:-1]:
            with torch.no_grad():
                real = layer(real)
            fake = layer(fake)
            if isinstance(layer, torch.nn.LeakyReLU):
                distances.append((fake.float() - real.float()).abs().mean())
        score = self.discriminator.main[-1](fake).float().mean()
        return {"adversarial": -score, "matching": torch.stack(distances).sum()}

    def _weighted_gradient(self, terms: dict[str, Tensor], reconstruction: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Gradient of the whole loss with respect to the reconstruction, and the adaptive weights.

        A term of the discriminator is scaled by the ratio of the reconstruction loss's gradient norm to its own
        at the last layer (arXiv 2012.09841, section 3.1), times its weight.
        """
        last = self.model.decoder.conv_out.weight
        plain = {name: terms[name] for name in ("pixel", "perceptual") if name in terms}
        gradient = torch.autograd.grad(torch.stack(list(plain.values())).sum(), reconstruction)[0]

        def norm(g: Tensor) -> Tensor:
            return torch.autograd.grad(reconstruction, last, g, retain_graph=True)[0].norm()

        weights: dict[str, Tensor] = {}
        if len(terms) == len(plain):
            return gradient, weights
        reference = norm(gradient)
        for name in [name for name in terms if name not in plain]:
            g = torch.autograd.grad(terms[name], reconstruction, retain_graph=True)[0]
            weight = getattr(self.loss, name) * (reference / (norm(g) + 1e-8)).clamp(max=1e4)
            weights[f"{name}_weight"] = weight
            gradient = gradient + weight * g
        return gradient, weights

    def _discriminator_step(self, real: Tensor, fake: Tensor) -> Tensor:
        self.d_optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            on_real, on_fake = self.discriminator(real), self.discriminator(fake)
        hinge = 0.5 * (F.relu(1 - on_real.float()).mean() + F.relu(1 + on_fake.float()).mean())
        hinge.backward()
        self.d_optimizer.step()
        return hinge.detach()

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "start_sha256": self.start_sha256,
            "seconds": self.clock.seconds,
            "model": self.model.state_dict(),
            "ema": self.ema.state,
            "codebook": self.codebook.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "d_optimizer": self.d_optimizer.state_dict(),
            "generator": self.generator.get_state(),
            "random": random_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.clock = state["step"], Clock(state["seconds"])
        self.start_sha256 = state["start_sha256"]
        for name in ("model", "codebook", "discriminator", "optimizer", "d_optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.ema.load(state["ema"])
        self.generator.set_state(state["generator"])
        set_random_state(state["random"])


class TrainingPictures:
    """Decoded pictures by row: kept in memory where they fit, decoded by a pool of threads elsewhere."""

    def __init__(self, source: ImageSource, size: int, workers: int) -> None:
        self.prefetch = Prefetch(source, size, workers=workers)
        self.rows = len(source)
        self._kept: UInt8[Tensor, "count 3 size size"] | None = None
        if self.rows * 3 * size * size <= MEMORY_LIMIT:
            self._kept = self._decode(torch.arange(self.rows))

    def _decode(self, rows: Tensor) -> UInt8[Tensor, "n 3 size size"]:
        decoded: list[Tensor] = []
        for _, batch in self.prefetch.batches(rows.tolist(), 256):
            for picture in batch:
                if isinstance(picture, UserError):
                    raise picture
                decoded.append(picture)
        return torch.stack(decoded)

    def __getitem__(self, rows: Tensor) -> UInt8[Tensor, "n 3 size size"]:
        return self._kept[rows] if self._kept is not None else self._decode(rows)


def train_tokenizer(
    config_path: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    overrides: list[str] | tuple[str, ...] = (),
    resume: bool = False,
    device: str = "cpu",
    workers: int = 2,
) -> Path:
    """Train a tokenizer and export it as a tokenizer folder.

    Args:
        config_path: YAML of a `TokenizerTrainConfig`.
        data: image folder or tar.
        out: folder of the run: config.yaml, checkpoints, log.csv, pictures, and the tokenizer in ``tokenizer/``.
        overrides: ``key=value``.
        resume: go on from the last checkpoint in ``out``.
        device: where to train.
        workers: threads that decode pictures.

    Returns:
        The exported tokenizer folder.

    Raises:
        UserError: for a wrong config or data, a run that exists, or a loss that is not finite.
    """
    config, out = load_config(TokenizerTrainConfig, config_path, overrides), Path(out)
    if has_checkpoint(out) and not resume:
        raise UserError("the folder holds a run", out, "add --resume to go on with it, or give another folder")
    if config.start:
        start = starting_point(config.start)
        config.architecture = start.config
        if config.train.decoder_only:
            _check_exact(start, config.train.weights_dtype)
    elif config.train.decoder_only:
        raise UserError("train.decoder_only needs a tokenizer to go on from", "start is empty", "add start=NAME|DIR")
    state = load_checkpoint(out) if resume else None
    source = open_source(data)
    keep_freed_memory()
    trainer = TokenizerTrainer(config, device)
    size = check_image_size(trainer.model, None)
    pictures = TrainingPictures(source, size, workers)
    order = DataOrder(pictures.rows, config.train.batch_size, config.train.seed)
    if state is not None:
        trainer.load_state_dict(state["trainer"])
        order.load_state_dict(state["order"])
    out.mkdir(parents=True, exist_ok=True)
    remove_temporaries(out, out / "tokenizer", out / "reconstructions")
    save_config(out / "config.yaml", config)
    log = Log(out, COLUMNS, trainer.step)
    try:
        with Stop() as stop:
            _loop(trainer, pictures, order, out, log, stop)
    finally:
        log.close()
    plot_at_the_end(out)
    return export_tokenizer(out / "tokenizer", config, trainer, pictures.rows)


def starting_point(name_or_path: str) -> VQGAN:
    """The tokenizer that a training goes on from; UserError if it is not of taming's kind."""
    tokenizer = load_tokenizer(name_or_path)
    if type(tokenizer) is not VQGAN:
        raise UserError(
            "training can go on from a VQGAN of family taming only",
            f"{tokenizer.name} is a {type(tokenizer).__name__}",
            "see ggm-image tokenizers for the families",
        )
    return tokenizer


FROZEN = ("encoder.", "quant_conv.", "quantize.")
"""Of these weights the tokens are made."""


def _check_exact(tokenizer: VQGAN, dtype: str) -> None:
    """Raise UserError if the weights that stay would be rounded: some pictures would then have other tokens."""
    for name, value in tokenizer.state_dict().items():
        if name.startswith(FROZEN) and not torch.equal(value.to(getattr(torch, dtype)).to(value.dtype), value):
            what = "train.weights_dtype must hold the encoder's weights exactly"
            raise UserError(what, f"{dtype} rounds {name}", "set train.weights_dtype=float32")


def _loop(
    trainer: TokenizerTrainer, pictures: TrainingPictures, order: DataOrder, out: Path, log: Log, stop: Stop
) -> None:
    train = trainer.train

    def save() -> None:
        save_checkpoint(out, {"trainer": trainer.state_dict(), "order": order.state_dict()})

    saved = trainer.clock.seconds
    while trainer.progress() < 1:
        images = to_model(pictures[order.next()])
        if train.flip:
            mirrored = torch.rand(len(images), generator=trainer.generator) < 0.5
            images[mirrored] = images[mirrored].flip(-1)
        logs = trainer.train_step(images.to(trainer.device))
        # psnr is infinite where a picture is met exactly; what follows from the others would be saved at the next turn
        found = [trainer.gradient_norm, *(value for name, value in logs.items() if name != "psnr")]
        if not all(map(math.isfinite, found)):
            kept = f"go on from {out} with --resume" if has_checkpoint(out) else "start again"
            fix = f"{kept}, with a lower train.learning_rate"
            raise UserError("the loss is not finite", f"step {trainer.step}", fix)
        step = trainer.step
        if step % train.log_every == 0:
            values = logs | {
                "minutes": trainer.clock.seconds / 60,
                "perplexity": trainer.codebook.perplexity(),
                "dead": trainer.codebook.dead(),
                "learning_rate": trainer.rate(),
            }
            log.write(step, values)
            print(
                f"step {step}  {100 * trainer.progress():.1f}%  psnr {logs['psnr']:.2f} dB  perplexity "
                f"{values['perplexity']:.0f}  dead {values['dead']:.0f}",
                file=sys.stderr,
                flush=True,
            )
        if train.sample_every and step % train.sample_every == 0:
            save_png(reconstructions(trainer, pictures), out / "reconstructions" / f"{step:07d}.png")
        if trainer.clock.seconds - saved > 60 * train.checkpoint_minutes:
            save()
            saved = trainer.clock.seconds
        if stop.wanted:
            save()
            print(f"saved at step {step}; run the same command with --resume to go on", file=sys.stderr, flush=True)
            raise KeyboardInterrupt
    save()


def averaged(trainer: TokenizerTrainer, config: VQGANConfig) -> VQGAN:
    """The tokenizer with the moving average of the weights."""
    model = VQGAN(config).to(trainer.device)
    model.load_state_dict(trainer.ema.state)
    return model.eval()


def reconstructions(trainer: TokenizerTrainer, pictures: TrainingPictures) -> UInt8[Tensor, "3 h w"]:
    """Eight pictures above what the tokenizer makes of them."""
    shown = pictures[torch.arange(min(8, pictures.rows))]
    model = averaged(trainer, trainer.model.config)
    painted = to_uint8(model.decode(model.encode(to_model(shown).to(trainer.device)))).cpu()
    return image_grid(torch.cat([shown, painted]), columns=len(shown))


def export_tokenizer(folder: Path, config: TokenizerTrainConfig, trainer: TokenizerTrainer, pictures: int) -> Path:
    """Write a tokenizer folder: the averaged weights and their config.yaml with the hash."""
    save_weights(folder / "model.safetensors", trainer.ema.state, getattr(torch, config.train.weights_dtype))
    sha256 = sha256_file(folder / "model.safetensors")
    own = {"identity": trainer.start_sha256, "decoder": sha256} if config.train.decoder_only else {}
    entries = {
        "name": config.name,
        "licence": config.licence,
        "architecture": plain(config.architecture),
        "weights": {"sha256": sha256, **own, "url": None, "mirrors": []},
        "reported": {},
        "training": {
            "pictures": pictures,
            "steps": trainer.step,
            "minutes": round(trainer.clock.seconds / 60, 1),
            "loss": asdict(config.loss),
            "train": asdict(config.train),
        },
    }
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(entries)))
    return folder
