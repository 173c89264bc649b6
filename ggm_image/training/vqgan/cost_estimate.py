"""Estimate the cost of a run of `train-tokenizer` before it is started: parameters, memory, time.

| part | bytes |
| --- | --- |
| trained weights | 20 each: weight, gradient, AdamW's two moments, moving average, all in float32 |
| the discriminator | 16 each: it has no average |
| other weights | 8 each of an encoder that stays (weight and average), 4 each of a perceptual loss |
| activations | what the forward passes of a batch keep for the backward pass, counted on tensors without numbers |
| images | those that are kept decoded |

The working space of single kernels and the libraries come on top. Time assumes that a step reaches `SHARES` of the rate
of a convolution, which is measured.
"""

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from ggm_image.errors import UserError, explained
from ggm_image.runtime.memory import available_memory
from ggm_image.runtime.precision import choose_precision
from ggm_image.tokenizers.vq.vqgan import VQGAN
from ggm_image.training.config import digits, duration
from ggm_image.training.vqgan.config import TokenizerTrainConfig
from ggm_image.training.vqgan.perceptual import SmallPerceptual
from ggm_image.training.vqgan.trainer import FROZEN

SHARES = {"bf16-mixed": 0.4, "32-true": 0.7}
"""Of the rate of a convolution, what a training step reaches; measured on one core, uncompiled."""
MARGIN = 0.9
"""Of the available memory, what a run may need: kernels and libraries want some too."""
GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class TokenizerCostEstimate:
    """The cost of a run.

    Attributes:
        step_flops: floating-point operations of a step in the part of the run that has all its losses.
        state_bytes: weights, gradients, optimizers and average.
        image_bytes: activations of one more image in the batch.
        fixed_bytes: activations that do not depend on the batch.
        data_bytes: of images that are kept decoded.
    """

    parameters: int
    step_flops: float
    state_bytes: int
    image_bytes: int
    fixed_bytes: int
    data_bytes: int
    step_seconds: float
    steps: int
    batch_size: int
    precision: str

    @property
    def activation_bytes(self) -> int:
        return self.fixed_bytes + self.batch_size * self.image_bytes

    @property
    def bytes(self) -> int:
        return self.state_bytes + self.activation_bytes + self.data_bytes

    def largest_batch(self, available: int) -> int:
        """The largest batch that fits into so many bytes; 0 if none does."""
        rest = int(MARGIN * available) - self.state_bytes - self.data_bytes - self.fixed_bytes
        return max(0, rest // self.image_bytes)


def estimate_tokenizer_cost(
    config: TokenizerTrainConfig, *, images: int, kept_bytes: int, device: str = "cpu", rate: float | None = None
) -> TokenizerCostEstimate:
    """What training as ``config`` says will cost; takes seconds, and little memory.

    Args:
        kept_bytes: most bytes of decoded images that are kept.
        device: whose rate is measured.
        rate: operations a second of a convolution, where it is not to be measured.
    """
    train = config.train
    precision = choose_precision(train.precision, torch.device(device))[0]
    found = _count(config, half=precision == "bf16-mixed")
    size = config.architecture.image_size
    data = images * 3 * size * size
    step_flops = found.flops * train.batch_size
    seconds = step_flops / (SHARES[precision] * (rate or convolution_rate(torch.device(device), precision)))
    steps = train.steps
    if train.max_minutes is not None:
        steps = min(steps, max(1, int(60 * train.max_minutes / seconds)))
    return TokenizerCostEstimate(
        parameters=found.trained + found.still,
        step_flops=step_flops,
        state_bytes=20 * found.trained + 8 * found.still + 16 * found.judge + 4 * found.perceptual,
        image_bytes=found.two - found.one,
        fixed_bytes=max(0, 2 * found.one - found.two),
        data_bytes=data if data <= kept_bytes else 0,
        step_seconds=seconds,
        steps=steps,
        batch_size=train.batch_size,
        precision=precision,
    )


def check_memory(config: TokenizerTrainConfig, *, images: int, kept_bytes: int, device: str) -> None:
    """Refuse a run that needs more memory than the device has available; arguments as of `estimate_tokenizer_cost`."""
    available = available_memory(torch.device(device))
    if available is None or _most_bytes(config, images, kept_bytes) <= MARGIN * available:
        return
    cost = estimate_tokenizer_cost(config, images=images, kept_bytes=kept_bytes, device=device, rate=1.0)
    if cost.bytes <= MARGIN * available:
        return
    fits = cost.largest_batch(available)
    fix = f"set train.batch_size={fits}" if fits else "use a smaller architecture or another device"
    raise UserError(
        "the run needs more memory than is available",
        f"about {cost.bytes / GIB:.1f} GiB for train.batch_size={cost.batch_size}, {available / GIB:.1f} GiB available",
        f"{fix}, or insist with --force",
    )


def _most_bytes(config: TokenizerTrainConfig, images: int, kept_bytes: int) -> float:
    """Several times what a run needs, in no time: small ones need not be counted exactly."""
    net, loss = config.architecture.ddconfig, config.loss
    depth = (len(net.ch_mult) + 1) * (net.num_res_blocks + 2)
    weights = 4 * 9 * (net.ch * max(net.ch_mult)) ** 2 * depth + (1 << 25)
    areas = sum(multiplier / 4**level for level, multiplier in enumerate(net.ch_mult))
    pixels = net.resolution**2
    activations = pixels * max(net.ch, loss.discriminator_width, 64) * 4 * areas * (net.num_res_blocks + 2) * 60
    attention = sum(r**4 for r in (*net.attn_resolutions, net.resolution >> (len(net.ch_mult) - 1))) * depth * 16
    return 20 * weights + config.train.batch_size * (activations + attention) + min(kept_bytes, 3 * images * pixels)


def lines(cost: TokenizerCostEstimate, images: int) -> list[str]:
    """For people."""
    return [
        f"parameters   {cost.parameters / 1e6:,.1f} million",
        f"a step       {cost.step_flops / 1e12:,.3g} TFLOP, about {digits(cost.step_seconds)} s, "
        f"{cost.batch_size / cost.step_seconds:,.3g} images/s",
        f"memory       {cost.bytes / GIB:,.2f} GiB: {cost.state_bytes / GIB:,.2f} weights, optimizers and average, "
        f"{cost.activation_bytes / GIB:,.2f} activations, {cost.data_bytes / GIB:,.2f} images",
        f"the run      {cost.steps:,} steps, about {duration(cost.steps * cost.step_seconds)}, "
        f"at {SHARES[cost.precision]:.0%} of the rate of convolutions in {cost.precision}",
        f"the data     {images:,} images, seen {cost.steps * cost.batch_size / max(1, images):,.3g} times",
    ]


@dataclass(frozen=True)
class _Counts:
    """Bytes kept by a step of one image and of two, operations of a step of one, and numbers of weights."""

    one: int
    two: int
    flops: float
    trained: int
    still: int
    judge: int
    perceptual: int


def _count(config: TokenizerTrainConfig, *, half: bool) -> _Counts:
    """Work through a step on tensors without numbers."""
    from taming.modules.discriminator.model import NLayerDiscriminator

    loss = config.loss
    adversarial = loss.adversarial_start < 1 and loss.adversarial + loss.matching > 0
    with FakeTensorMode(allow_non_fake_inputs=True):
        with explained("architecture must be one of a VQGAN", "compare it with those in configs/"):
            model = VQGAN(config.architecture).train()
        frozen = FROZEN if config.train.decoder_only else ("quantize.",)
        for name, weight in model.named_parameters():
            weight.requires_grad_(not name.startswith(frozen))
        judge = NLayerDiscriminator(ndf=loss.discriminator_width, n_layers=loss.discriminator_layers)
        parts = [
            model,
            judge if adversarial else None,
            _perceptual(loss.perceptual_weights) if loss.perceptual else None,
        ]
        one, two = (_step(parts, n, config.architecture.image_size, half) for n in (1, 2))
        with FlopCounterMode(display=False) as counter:
            _step(parts, 1, config.architecture.image_size, half)
    total, judged, perceived = (sum(p.numel() for p in part.parameters()) if part else 0 for part in parts)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return _Counts(one, two, counter.get_total_flops(), trained, total - trained, judged, perceived)


def _step(parts: Sequence[nn.Module | None], n: int, size: int, half: bool) -> int:
    """A step of ``n`` images, as `TokenizerTrainer.train_step`; bytes kept for the backward pass, without weights."""
    model, judge, perceptual = parts
    assert isinstance(model, VQGAN)
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        alive.append(tensor)  # or another storage may get its place
        return tensor

    images = torch.zeros(n, 3, size, size)
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=half):
        z = model.latents(images)
        reconstruction = model.decoder(model.post_quant_conv(z + torch.zeros_like(z))).float()
        reconstruction = F.pixel_shuffle(reconstruction, model.patch_size)
        total = F.mse_loss(reconstruction, images) + (reconstruction - images).abs().mean()
        if perceptual is not None:
            total = total + perceptual(reconstruction, images).float()
        if judge is not None:
            total = total + judge(reconstruction).float().mean()
    weights = {p.untyped_storage()._cdata for part in parts if part is not None for p in part.parameters()}
    held = sum(size for place, size in kept.items() if place not in weights)
    total.backward()
    if judge is not None:  # its own step: the real images and the reconstructions
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            (judge(images).float().mean() + judge(reconstruction.detach()).float().mean()).backward()
    return held


class _Vgg(nn.Module):
    """Sizes of LPIPS: the features of VGG-16 for both images, compared at five resolutions."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import vgg16

        self.features = vgg16(weights=None).features.requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        total = torch.zeros(())
        for index, layer in enumerate(self.features):
            if isinstance(layer, nn.MaxPool2d) and a.shape[-1] < 2:
                break  # too small an image for LPIPS, which the run will say
            a, b = layer(a), layer(b)
            if index in (3, 8, 15, 22, 29):
                total = total + (a.float() - b.float()).square().mean()
        return total


def _perceptual(source: str) -> nn.Module:
    small = Path(source).suffix == ".safetensors"
    return SmallPerceptual(10).eval().requires_grad_(False) if small else _Vgg()


def convolution_rate(device: torch.device, precision: str, seconds: float = 1.0) -> float:
    """Operations a second of a 3 x 3 convolution of 128 channels, measured for about ``seconds`` at most."""
    dtype, side, end = torch.bfloat16 if precision == "bf16-mixed" else torch.float32, 8, time.monotonic() + seconds
    kernel = torch.randn(128, 128, 3, 3, device=device).to(dtype)
    while True:
        image = torch.randn(4, 128, side, side, device=device).to(dtype)
        run = functools.partial(F.conv2d, image, kernel, padding=1)
        run()  # the first one sets things up
        took = _timed(run, device)
        if side == 64 or took > seconds / 8:
            break
        side *= 2
    repeats = max(1, min(4, int((end - time.monotonic()) / max(took, 1e-9))))
    total = sum(_timed(run, device) for _ in range(repeats))
    return 2 * 4 * 128 * 128 * 9 * side * side * repeats / total


def _timed(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return max(time.perf_counter() - start, math.ulp(1.0))
