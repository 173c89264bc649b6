"""A self-criticising sampler of a masked network, in the place of Token-Critic (arXiv 2209.04439).

Token-Critic trains a second network that tells sampled tokens from real ones, and calls both in every round: fill the
masked sites, judge all tokens, mask the worst. A second network does not fit a comparison at equal training time, so
here the masked network judges itself: with half of the tokens masked (a half of the Bayer order, a chequerboard), a
token's score is log P(token | the other half). This is the score of informed correctors (arXiv 2407.21243) without
their hollow network; the halves take turns, so that a round costs two calls, as Token-Critic's do. New tokens outside
that half have the score with which they were sampled, as in MaskGIT; old ones outside it stay.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from baselines.base import Network, sample_uniforms
from ggm_image.glauber import sample_codes
from ggm_image.schedule import order_sites


def critic(
    network: Network,
    calls: int,
    labels: Int[Tensor, " b"] | None,
    *,
    height: int,
    width: int,
    codebook_size: int,
    generators: Sequence[torch.Generator],
    confidence_noise: float = 0.0,
    temperature: float = 1.0,
    device: torch.device | str = "cpu",
) -> Int[Tensor, "b l"]:
    """Sample tokens in rounds of two calls, one that fills and one that judges, and a last call that fills.

    With an even number of calls, the first round has no judge. After round r of R, floor(l cos(pi/2 r/(R + 1))) sites
    are masked, at least one. The scores have Gumbel noise, times ``confidence_noise`` (1 - r/(R + 1)).
    """
    sites, b, every = height * width, len(generators), torch.arange(height * width, device=device)
    order = order_sites(height, width, "bayer").to(device)
    halves = (order[: sites // 2].sort().values, order[sites // 2 :].sort().values)
    rounds = calls // 2
    u_token = sample_uniforms(generators, (rounds + 1, sites), device)
    u_noise = sample_uniforms(generators, (rounds, sites), device)
    x = torch.full((b, sites), codebook_size, device=device)
    left = sites
    for r in range(rounds):
        masked = x == codebook_size
        log_probs = _log_probs(network, x, every, labels, codebook_size, temperature)
        new = sample_codes(log_probs, u_token[r])
        x = torch.where(masked, new, x)
        scores = log_probs.gather(-1, new.unsqueeze(-1)).squeeze(-1).double().masked_fill(~masked, torch.inf)
        if calls % 2 or r:
            half = halves[r % 2]
            judged = _log_probs(network, x.index_fill(1, half, codebook_size), half, labels, codebook_size)
            scores[:, half] = judged.gather(-1, x[:, half].unsqueeze(-1)).squeeze(-1).double()
        gumbel = -(-u_noise[r].log()).log()
        scores = scores + confidence_noise * (1 - (r + 1) / (rounds + 1)) * gumbel
        left = max(1, min(left, math.floor(sites * math.cos(math.pi / 2 * (r + 1) / (rounds + 1)))))
        x = x.scatter(1, scores.topk(left, dim=1, largest=False).indices, codebook_size)
    new = sample_codes(_log_probs(network, x, every, labels, codebook_size, temperature), u_token[rounds])
    return torch.where(x == codebook_size, new, x)


def _log_probs(
    network: Network, x: Tensor, sites: Tensor, labels: Tensor | None, codebook_size: int, temperature: float = 1.0
) -> Tensor:
    logits = network(x, (x != codebook_size).float(), sites, labels) / temperature
    return logits.log_softmax(-1)
