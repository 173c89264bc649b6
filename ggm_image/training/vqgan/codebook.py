"""Codebook updates by moving averages of the encoder's latents, and restarts of unused codes.

van den Oord, Vinyals, Kavukcuoglu, "Neural Discrete Representation Learning", arXiv 1711.00937, appendix A.1.
Legend: ``m`` latent vectors of a batch, ``e`` their width.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class CodebookEMA(nn.Module):
    """Moving averages that carry the codebook, and the restart of dead codes."""

    def __init__(self, codes: int, width: int, decay: float) -> None:
        super().__init__()
        self.decay, self.has_started = decay, False
        self.register_buffer("count", torch.zeros(codes))
        self.register_buffer("total", torch.zeros(codes, width))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.count: Tensor
        self.total: Tensor
        self.started: Tensor
        self.register_load_state_dict_post_hook(lambda book, _: book._read_started())

    def _read_started(self) -> None:
        self.has_started = bool(self.started)  # kept on the CPU: asking the buffer would wait for the device

    @torch.no_grad()
    def start(self, weight: Tensor, z: Float[Tensor, "m e"], generator: torch.Generator) -> None:
        """Place the codes on latents of the first batch; ``generator`` may be one of another device."""
        where = generator.device
        rows = torch.randint(len(z), (len(weight),), generator=generator, device=where).to(z.device)
        noise = torch.randn(weight.shape, generator=generator, device=where).to(weight)
        weight.copy_(z[rows] + 1e-3 * noise)
        self.adopt(weight)

    @torch.no_grad()
    def adopt(self, weight: Tensor) -> None:
        """Take over trained codes, as if each had been used equally often."""
        self.count.fill_(1.0)
        self.total.copy_(weight)
        self.started.fill_(True)
        self.has_started = True

    @torch.no_grad()
    def observe(self, indices: Int[Tensor, " m"]) -> None:
        """One step of the moving average of how often each code is used."""
        # not bincount, which waits for the device to know the length of its result
        count = torch.zeros_like(self.count).index_add_(0, indices, self.count.new_ones(()).expand(len(indices)))
        self.count.lerp_(count, 1 - self.decay)

    @torch.no_grad()
    def update(self, weight: Tensor, z: Float[Tensor, "m e"], indices: Int[Tensor, " m"]) -> None:
        """One step of the moving averages, in place."""
        self.observe(indices)
        total = torch.zeros_like(self.total).index_add_(0, indices, z.to(self.total))
        self.total.lerp_(total, 1 - self.decay)
        n = self.count.sum()
        smooth = (self.count + 1e-5) / (n + len(weight) * 1e-5) * n
        weight.copy_(self.total / smooth[:, None])

    @torch.no_grad()
    def restart_dead(self, weight: Tensor, z: Float[Tensor, "m e"], generator: torch.Generator) -> Int[Tensor, ""]:
        """Move codes used less than a twentieth of their fair share onto latents of the batch; returns their number."""
        fair = self.count.sum() / len(weight)
        dead = self._dead()
        rows = torch.randperm(len(z), generator=generator, device=generator.device).to(z.device)
        place = dead.cumsum(0) - 1  # the k-th dead code takes the k-th row
        moved = dead & (place < len(z))
        latents = z[rows[place.clamp(0, len(z) - 1)]].to(weight)
        weight.copy_(torch.where(moved[:, None], latents, weight))
        self.count.copy_(torch.where(moved, fair, self.count))
        self.total.copy_(torch.where(moved[:, None], latents * fair, self.total))
        return moved.sum()

    def _dead(self) -> Tensor:
        return self.count < 0.05 * self.count.mean()

    def dead(self) -> int:
        """How many codes are used less than a twentieth of their fair share."""
        return int(self._dead().sum())

    def perplexity(self) -> float:
        """exp of the entropy of the codes' use: at most the number of codes."""
        p = self.count / self.count.sum()
        return float(torch.exp(-(p * (p + 1e-10).log()).sum()))
