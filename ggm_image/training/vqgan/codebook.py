"""A codebook that follows its encoder: moving averages, and the restart of codes that nothing uses.

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
        self.decay = decay
        self.register_buffer("count", torch.zeros(codes))
        self.register_buffer("total", torch.zeros(codes, width))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.count: Tensor
        self.total: Tensor
        self.started: Tensor

    @torch.no_grad()
    def start(self, weight: Tensor, z: Float[Tensor, "m e"], generator: torch.Generator) -> None:
        """Place the codes on latents of the first batch."""
        rows = torch.randint(len(z), (len(weight),), generator=generator)
        weight.copy_(z[rows] + 1e-3 * torch.randn(weight.shape, generator=generator).to(weight))
        self.adopt(weight)

    @torch.no_grad()
    def adopt(self, weight: Tensor) -> None:
        """Take over trained codes, as if each had been used equally often."""
        self.count.fill_(1.0)
        self.total.copy_(weight)
        self.started.fill_(True)

    @torch.no_grad()
    def observe(self, indices: Int[Tensor, " m"]) -> None:
        """One step of the moving average of how often each code is used."""
        count = torch.bincount(indices, minlength=len(self.count)).to(self.count)
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
    def restart_dead(self, weight: Tensor, z: Float[Tensor, "m e"], generator: torch.Generator) -> int:
        """Move codes that are used less than a twentieth of their fair share onto latents of the batch."""
        fair = self.count.sum() / len(weight)
        dead = self._dead().nonzero()[:, 0]
        rows = torch.randperm(len(z), generator=generator)[: len(dead)]
        dead = dead[: len(rows)]
        weight[dead] = z[rows].to(weight)
        self.count[dead] = fair
        self.total[dead] = weight[dead] * fair
        return len(dead)

    def _dead(self) -> Tensor:
        return self.count < 0.05 * self.count.mean()

    def dead(self) -> int:
        """How many codes are used less than a twentieth of their fair share."""
        return int(self._dead().sum())

    def perplexity(self) -> float:
        """exp of the entropy of the codes' use: at most the number of codes."""
        p = self.count / self.count.sum()
        return float(torch.exp(-(p * (p + 1e-10).log()).sum()))
