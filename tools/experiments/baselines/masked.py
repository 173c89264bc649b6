"""Masked diffusion: MaskGIT's network (arXiv 2202.04200), MDLM's, the Halton order (arXiv 2503.17076), the bound."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from baselines.base import Network
from ggm_image.glauber import sample_codes
from ggm_image.schedule import Query, order_sites
from ggm_image.training.trainer import GeneratorTrainer


class MaskedTrainer(GeneratorTrainer):
    """Masked diffusion: a cosine share of the sites is masked, the others are clean; cross-entropy."""

    def query(self) -> Query:
        height, width = self.config.network.grid
        sites_total = height * width
        share = math.cos(math.pi / 2 * float(torch.rand((), generator=self.generator)))
        sites = torch.randperm(sites_total, generator=self.generator)[: max(1, math.ceil(share * sites_total))]
        return Query(sites, None)

    def corrupt(self, x_0: Int[Tensor, "b l"], query: Query) -> tuple[Tensor, Tensor]:
        tokens = x_0.index_fill(1, query.sites, self.config.network.codebook_size)
        return tokens, torch.ones(x_0.shape, device=x_0.device)


class MDLMTrainer(MaskedTrainer):
    """MDLM (arXiv 2406.07524): any number of masked sites is as likely as any other; cross-entropy.

    Its bound weights the cost of all masked sites by one over the masked share, and the share is uniform: l times the
    mean cost of a masked site, as here. All rows of a batch have the same sites masked.
    """

    def query(self) -> Query:
        height, width = self.config.network.grid
        count = 1 + int(torch.rand((), generator=self.generator) * height * width)
        return Query(torch.randperm(height * width, generator=self.generator)[:count], None)


def halton(
    network: Network,
    calls: int,
    labels: Int[Tensor, " b"] | None,
    *,
    height: int,
    width: int,
    codebook_size: int,
    generators: Sequence[torch.Generator],
    temperature: float = 1.0,
    device: torch.device | str = "cpu",
) -> Int[Tensor, "b l"]:
    """Masked diffusion in Halton order: after call n of N, cos(pi/2 n/N) of the sites are left masked.

    At most one call a site is made. The paper's arccos law is the same curve.
    """
    sites, b = height * width, len(generators)
    order = order_sites(height, width, "halton").to(device)
    calls = min(calls, sites)
    left = [math.floor(sites * math.cos(math.pi / 2 * (n + 1) / calls)) for n in range(calls)]
    uniforms = torch.stack([torch.rand(sites, generator=g, dtype=torch.float64) for g in generators]).to(device)
    x = torch.full((b, sites), codebook_size, device=device)
    placed = 0
    for n in range(calls):
        until = max(min(sites - left[n], sites - (calls - 1 - n)), placed + 1)  # at least one a call
        block = order[placed:until]
        logits = network(x, (x != codebook_size).float(), block, labels) / temperature
        x[:, block] = sample_codes(logits.log_softmax(-1), uniforms[:, block])
        placed = until
    return x


@torch.no_grad()
def any_order_bound(
    network: Network,
    tokens: Int[Tensor, "n l"],
    labels: Int[Tensor, " n"] | None,
    *,
    codebook_size: int,
    generator: torch.Generator,
    batch_size: int = 100,
) -> float:
    """An upper bound on -log p(x_0), nats per token, of a network that fills masked sites: the mean over random orders.

    With M uniform in 1..l and M random sites masked, the mean of -log p0(x_0) over them (arXiv 2110.02037).
    """
    total, sites_total = 0.0, tokens.shape[1]
    parts = tokens.split(batch_size)
    for k, part in enumerate(parts):
        # M in equal parts over the batches, so that a few of them see every number of masked sites
        uniform = (k + float(torch.rand((), generator=generator))) / len(parts)
        sites = torch.randperm(sites_total, generator=generator)[: 1 + int(uniform * sites_total)]
        x = part.clone()
        x[:, sites] = codebook_size
        own = None if labels is None else labels[k * batch_size : k * batch_size + len(part)]
        logits = network(x, torch.ones(x.shape), sites, own).double()
        total += len(part) * float(F.cross_entropy(logits.flatten(0, 1), part[:, sites].flatten()))
    return total / len(tokens)
