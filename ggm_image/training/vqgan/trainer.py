"""Training a VQGAN: reconstruction, codebook, patch discriminator (arXiv 2012.09841, section 3.1).

Where we differ from taming: the codebook follows the encoder by moving averages and dead codes restart at
latents of the batch (see `codebook`); the perceptual loss is optional, because its weights may be unavailable; the
decoder can be trained alone, for tokens that stay as they are.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from ggm_image.errors import UserError, explained
from ggm_image.image.preprocess import to_model
from ggm_image.runtime.precision import choose_precision
from ggm_image.tokenizers.registry import load_image_tokenizer
from ggm_image.tokenizers.vq.vqgan import VQGAN
from ggm_image.training.batches import sampling_device
from ggm_image.training.checkpoint import (
    OTHER_DEVICE,
    generator_state,
    random_state,
    set_generator_state,
    set_random_state,
)
from ggm_image.training.loop import TrainingLoop
from ggm_image.training.optim import EMA, OptimizerSettings, make_optimizer
from ggm_image.training.vqgan.codebook import CodebookEMA
from ggm_image.training.vqgan.config import TokenizerTrainConfig
from ggm_image.training.vqgan.perceptual import hold_products_in_bf16, load_perceptual
from ggm_image.training.vqgan.timm_perceptual import TimmPerceptual

FROZEN = ("encoder.", "quant_conv.", "quantize.")
"""Names of the weights that the tokens are made of begin so."""


class TokenizerTrainer(TrainingLoop):
    """Everything that changes while a tokenizer is trained, and one step of it; `run.TokenizerRun` is a whole run."""

    def __init__(self, config: TokenizerTrainConfig, device: str, out: Path = Path()) -> None:
        from taming.modules.discriminator.model import NLayerDiscriminator, weights_init

        super().__init__(config, config.train, out)
        self.config, self.loss, self.train, self.device = config, config.loss, config.train, torch.device(device)
        self.train.precision = choose_precision(self.train.precision, self.device)[0]
        self.gradient_norm: Tensor | float = 0.0
        torch.manual_seed(config.train.seed)
        with explained("architecture must be one of a VQGAN", "compare it with those in configs/"):
            self.model = VQGAN(config.architecture, name=config.name).to(self.device).train()
        self.model.quantize.requires_grad_(False)
        if config.train.decoder_only:
            for name, weight in self.model.named_parameters():
                weight.requires_grad_(not name.startswith(FROZEN))
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
            self.perceptual = load_perceptual(config.loss.perceptual_weights, config.loss.perceptual_size)
            self.perceptual = self.perceptual and self.perceptual.to(self.device)
            if self.perceptual is not None and config.train.precision == "bf16-mixed" and self.device.type == "cuda":
                hold_products_in_bf16(self.perceptual)  # on a CPU they are computed in float32
        settings = OptimizerSettings(
            learning_rate=0.0,
            weight_decay=None,
            betas=(0.9, 0.99),
            fused=self.device.type == "cuda",
            bf16=config.train.precision == "bf16-mixed",
        )
        self.optimizer = make_optimizer(config.train.optimizer, self.model, settings)
        judge = replace(settings, learning_rate=config.loss.discriminator_rate, betas=(0.5, 0.9))
        self.d_optimizer = make_optimizer("adamw", self.discriminator, judge)
        self.ema = EMA(self.model, config.train.ema_decay)
        self.generator = torch.Generator(sampling_device(self.device)).manual_seed(config.train.seed)
        self.start_sha256 = ""
        self.restarted: Tensor | int = 0
        if config.start:
            self.begin_from(starting_point(config.start))
        compiled = self.compile_if_it_pays(self.device)
        maybe: Callable[..., Any] = torch.compile if compiled else (lambda f: f)
        self.encode, self.decode_body = maybe(self._encode), maybe(self._decode_body)
        if compiled and self.device.type == "cuda" and isinstance(self.perceptual, TimmPerceptual):
            self.perceptual.compile()  # hundreds of small kernels, whose launches take longer than they do

    def begin_from(self, tokenizer: VQGAN) -> None:
        """Take over a trained tokenizer's weights; its codes stay where they are, equally used so far."""
        self.model.load_state_dict(tokenizer.state_dict())
        self.ema = EMA(self.model, self.train.ema_decay)
        self.codebook.adopt(self.model.quantize.embedding.weight.data)
        self.start_sha256 = tokenizer.sha256

    def _encode(self, images: Tensor) -> Tensor:
        return self.model.latents(images)

    def _decode_body(self, codes: Tensor) -> Tensor:
        decoder = self.model.decoder
        return F.silu(decoder.norm_out(decoder(self.model.post_quant_conv(codes))))

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.train.precision == "bf16-mixed")

    def quantise(self, z: Float[Tensor, "n e gh gw"]) -> tuple[Tensor, Tensor]:
        """Straight-through codes (n, e, gh, gw) and commitment loss; moves the codebook."""
        weight = self.model.quantize.embedding.weight
        flat = z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]).float()  # (m, e)
        if not self.codebook.has_started:
            self.codebook.start(weight.data, flat.detach(), self.generator)
        with torch.no_grad():
            indices = self.model.quantize.nearest(flat)
            codes = weight[indices]
        commitment = F.mse_loss(flat, codes)
        n, e, h, w = z.shape
        if self.train.decoder_only:
            self.codebook.observe(indices)
            return codes.view(n, h, w, e).permute(0, 3, 1, 2), commitment
        straight = flat + (codes - flat).detach()
        self.codebook.update(weight.data, flat.detach(), indices)
        if self.step % self.train.restart_every == 0 and self.progress < self.train.restart_until:
            self.restarted = self.restarted + self.codebook.restart_dead(weight.data, flat.detach(), self.generator)
        return straight.view(n, h, w, e).permute(0, 3, 1, 2), commitment

    def augmented(self, images: UInt8[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 h w"]:
        """A batch as `train_step` takes it, half of it mirrored where the config says so; on the device of the run."""
        found = to_model(images)
        if self.train.flip:
            uniform = torch.rand(len(found), generator=self.generator, device=self.generator.device)
            found = torch.where((uniform < 0.5).to(found.device)[:, None, None, None], found.flip(-1), found)
        return found

    def train_step(self, images: Float[Tensor, "n 3 h w"]) -> dict[str, Tensor]:
        """One update of encoder and codebook (unless they rest), decoder and, after its start, of the discriminator.

        Returns:
            Terms of the loss and what is logged with them, as tensors, so that nothing waits for them.
        """
        loss, adversarial = self.loss, self.progress >= self.loss.adversarial_start
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        with self.autocast():
            z = self.encode(images)
            codes, commitment = self.quantise(z)
            reconstruction = self.model.decoder.conv_out(self.decode_body(codes)).float()
        reconstruction = F.pixel_shuffle(reconstruction, self.model.patch_size)
        error = reconstruction - images
        squared_error = error.square().mean()
        terms = {"pixel": loss.l1 * error.abs().mean() + loss.l2 * squared_error}
        if self.perceptual is not None:
            # the first rows are as random as any
            some = slice(math.ceil(loss.perceptual_images * len(images)))
            with self.autocast():
                terms["perceptual"] = loss.perceptual * self.perceptual(images[some], reconstruction[some]).float()
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
        self.gradient_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        logs = {name: term.detach() for name, term in terms.items()} | weights
        if adversarial:
            logs["discriminator"] = self._discriminator_step(images, reconstruction.detach())
        self.step += 1
        self.ema.update(self.model, self.step)
        logs["psnr"] = 10 * torch.log10(4 / squared_error.detach())
        logs["commitment"] = commitment.detach()
        return logs

    def _judged(self, images: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        """The discriminator's score of the reconstruction, and how far its features are from the original's.

        The second is the learned similarity of Larsen et al. (arXiv 1512.09300): a perceptual loss without
        weights from elsewhere.
        """
        (real, fake), distances = moved_together(images, reconstruction), []
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
        gradient = torch.autograd.grad(list(plain.values()), reconstruction)[0]

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
            real, fake = moved_together(real, fake)
            on_real, on_fake = self.discriminator(real), self.discriminator(fake)
        hinge = 0.5 * (F.relu(1 - on_real.float()).mean() + F.relu(1 + on_fake.float()).mean())
        hinge.backward()
        self.d_optimizer.step()
        return hinge.detach()

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "decoder_only": self.train.decoder_only,
            "restarted": int(self.restarted),
            "start_sha256": self.start_sha256,
            "seconds": self.clock.seconds,
            "model": self.model.state_dict(),
            "ema": self.ema.state,
            "codebook": self.codebook.state_dict(),
            "discriminator": self.discriminator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "d_optimizer": self.d_optimizer.state_dict(),
            "generator": generator_state(self.generator),
            "random": random_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        # a checkpoint of an earlier version has no record of the config, and knows neither of these three
        if (begun := state.get("decoder_only", False)) != self.train.decoder_only:
            what, fix = "train.decoder_only must be that of the run that is resumed", "give another --out"
            raise UserError(what, f"{self.train.decoder_only}, the checkpoint has {begun}", fix)
        self.resume_at(state["step"], state["seconds"])
        self.restarted = state.get("restarted", 0)
        self.start_sha256 = state.get("start_sha256", self.start_sha256)
        for name in ("model", "codebook", "discriminator", "optimizer", "d_optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.ema.load(state["ema"])
        if not set_generator_state(self.generator, state["generator"], self.train.seed + self.step):
            self.say(OTHER_DEVICE)
        set_random_state(state["random"])


def moved_together(a: Float[Tensor, "n 3 h w"], b: Float[Tensor, "n 3 h w"]) -> tuple[Tensor, Tensor]:
    """Both images moved by one random offset of up to 3 pixels, mirrored at the edges.

    A strided discriminator sees some positions of each cell better than others. If they were always the same, the
    decoder would learn to paint patterns of that period; moving the images prevents it.
    """
    h, w = a.shape[-2:]
    most = min(3, h - 1, w - 1)
    y, x = torch.randint(0, 2 * most + 1, (2,)).tolist()
    first, second = (F.pad(t, (most,) * 4, mode="reflect")[..., y : y + h, x : x + w] for t in (a, b))
    return first, second


def starting_point(name_or_path: str) -> VQGAN:
    """The tokenizer that training starts from; UserError if it is not of taming's kind."""
    tokenizer = load_image_tokenizer(name_or_path)
    if type(tokenizer) is not VQGAN:
        raise UserError(
            "training can start from a VQGAN of family taming only",
            f"{tokenizer.name} is a {type(tokenizer).__name__}",
            "see ggm-image tokenizers for the families",
        )
    return tokenizer
