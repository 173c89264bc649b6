"""ReMDM, remasking samplers of a masked network (arXiv 2503.00307); no training of their own.

With alpha the share of sites that hold a token, a step from alpha_t to alpha_s >= alpha_t at a site is

    token in place    masked again with probability sigma
    masked            filled with probability (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), from the network's p(x_0)

for any sigma up to min(1, (1 - alpha_s) / alpha_t); 0 is plain masked diffusion. How sigma is chosen:

| strategy | sigma |
| --- | --- |
| cap | min(eta, the highest) |
| rescale | eta times the highest |
| conf | that of rescale times the softmax over the tokens in place of -p, p the network's when the token was placed |
| loop | 0, then at constant alpha min(eta, the highest), then 0 |
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from baselines.base import Network, sample_uniforms
from ggm_image.glauber import sample_codes
from ggm_image.schedule import CURVES

STRATEGIES = ("cap", "rescale", "conf", "loop")

Plan = list[tuple[float, float, float]]
"""alpha before, alpha after, and sigma of each call."""


def remasking_plan(
    strategy: str,
    calls: int,
    eta: float,
    *,
    curve: str = "linear",
    loop_from: float = 0.55,
    loop_until: float = 0.05,
    loop_alpha: float = 0.9,
) -> Plan:
    """The levels and remasking probabilities of ``calls`` steps.

    Args:
        strategy: one of `STRATEGIES`; for "conf" sigma is that of rescale, to be shared out among the tokens.
        calls: network calls.
        eta: in [0, 1].
        curve: of `CURVES`, the share of sites that are masked after a part of the calls.
        loop_from, loop_until: of "loop": the times, which run from 1 to 0, between which it loops.
        loop_alpha: of "loop": the share of tokens that are in place meanwhile.
    """
    alphas = [1 - CURVES[curve](n / calls) for n in range(calls)] + [1.0]
    looped = range(0)
    if strategy == "loop":
        before = max(1, round((1 - loop_from) * calls))
        after = max(1, round(loop_until * calls))
        looped = range(before, max(before, calls - after))
        rest = max(1, calls - looped.stop)
        rising = [(1 - CURVES[curve](n / before)) * loop_alpha for n in range(before)]
        falling = [loop_alpha + (1 - loop_alpha) * n / rest for n in range(rest)]
        alphas = [*[*rising, *([loop_alpha] * len(looped)), *falling][:calls], 1.0]
    plan: Plan = []
    for n in range(calls):
        alpha, later = alphas[n], alphas[n + 1]
        highest = 1.0 if alpha == 0 else min(1.0, (1 - later) / alpha)
        sigma = eta * highest if strategy in ("rescale", "conf") else min(eta, highest)
        plan.append((alpha, later, sigma if strategy != "loop" or n in looped else 0.0))
    return plan


def unmasking_share(alpha: float, later: float, sigma: float) -> float:
    """The probability that a masked site is filled in a step."""
    return (later - (1 - sigma) * alpha) / (1 - alpha)


def remdm(
    network: Network,
    plan: Plan,
    labels: Int[Tensor, " b"] | None,
    *,
    sites: int,
    codebook_size: int,
    generators: Sequence[torch.Generator],
    by_confidence: bool = False,
    temperature: float = 1.0,
    device: torch.device | str = "cpu",
) -> Int[Tensor, "b l"]:
    """Sample tokens by a plan of `remasking_plan`; ``by_confidence`` shares sigma out as "conf" does.

    Under "conf" the masked sites have sigma 0, so that fewer sites hold a token than alpha says, as in the paper; the
    last step fills all.
    """
    b, every = len(generators), torch.arange(sites, device=device)
    u_token, u_change = sample_uniforms(generators, (2, len(plan), sites), device)
    x = torch.full((b, sites), codebook_size, device=device)
    placed_with = torch.full((b, sites), torch.inf, dtype=torch.float64, device=device)
    for n, (alpha, later, sigma) in enumerate(plan):
        masked = x == codebook_size
        log_probs = (network(x, (~masked).float(), every, labels) / temperature).log_softmax(-1)
        new = sample_codes(log_probs, u_token[n])
        remask: Float[Tensor, "b l"] | float = sigma
        if by_confidence:
            remask = sigma * (-placed_with).softmax(-1).nan_to_num(0.0)  # no token in place: there is none to mask
        filled = masked & (u_change[n] < unmasking_share(alpha, later, 0.0 if by_confidence else sigma))
        dropped = ~masked & (u_change[n] < remask)
        confidence = log_probs.gather(-1, new.unsqueeze(-1)).squeeze(-1).exp().double()
        placed_with = torch.where(filled, confidence, placed_with).masked_fill(dropped, torch.inf)
        x = torch.where(filled, new, x).masked_fill(dropped, codebook_size)
    return x


@torch.no_grad()
def remdm_bound(
    network: Network,
    tokens: Int[Tensor, "n l"],
    labels: Int[Tensor, " n"] | None,
    plan: Plan,
    *,
    codebook_size: int,
    generator: torch.Generator,
    batch_size: int = 100,
) -> float:
    """An upper bound on -log p(x_0), nats per token, of the sampler with this plan.

    The sum over the steps of `unmasking_share` times the mean of -log p(x_0) over the sites masked at alpha. It is
    least, and near the entropy for an exact network and many steps, without remasking.
    """
    total = 0.0
    for k, part in enumerate(tokens.split(batch_size)):
        every = torch.arange(part.shape[1])
        own = None if labels is None else labels[k * batch_size : k * batch_size + len(part)]
        for alpha, later, sigma in plan:
            masked = torch.rand(part.shape, generator=generator, dtype=torch.float64) >= alpha
            x = part.masked_fill(masked, codebook_size)
            cost = F.cross_entropy(
                network(x, (~masked).float(), every, own).double().transpose(1, 2), part, reduction="none"
            )
            total += unmasking_share(alpha, later, sigma) * float((cost * masked).sum())
    return total / tokens.numel()
