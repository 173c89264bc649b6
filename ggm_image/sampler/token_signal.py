"""Signal map: the model's own probability, token by token, that an image's token is signal.

Legend: `b` batch, `l` sites of the grid, `k` queried sites, `v` codes.

The classifier of arXiv 2405.17035 judges a token that was just sampled; here it judges the tokens of a finished image.
Suppose that each token is the clean one with probability `level` and a sample of the noise pi otherwise. Given all
other tokens,

    P(signal | x_i = a, ctx) = level p0(a) / (level p0(a) + (1 - level) pi(a)) = sigma(s(a)),

the signal logit of a step with keep = level that starts from clean tokens. Every site is masked in turn, a few
spread ones in one call: neighbours are never hidden from each other. The map is not in the paper.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.glauber import check_tokens, checked_noise, uniform_noise
from ggm_image.sampler.base import Denoiser
from ggm_image.schedule import Schedule


@torch.no_grad()
def signal_probability(
    denoiser: Denoiser,
    tokens: Int64[Tensor, "b l"],
    *,
    height: int,
    width: int,
    codebook_size: int,
    level: float = 0.9,
    block: int = 4,
    labels: Int64[Tensor, " b"] | None = None,
    noise: Float[Tensor, " v"] | None = None,
) -> Float[Tensor, "b l"]:
    """P(signal) of every token, given all the others.

    Args:
        denoiser: gives the clean-token logits, see `ggm_image.sampler`.
        tokens: (b, l) codes in [0, v).
        height, width: the grid, l = height * width.
        codebook_size: v.
        level: probability in (0, 1) that a token is signal before anything is seen; also the level that the network
            is given for the tokens around.
        block: sites masked in one call, spread in ordered-dither order; 1 is exact for a given denoiser.
        labels: (b,) classes.
        noise: distribution over the codes, (v,); uniform where None.

    Returns:
        (b, l) probabilities in [0, 1], float32, on the device of ``tokens``.

    Raises:
        UserError: tokens, level or block out of range, or logits that are no distribution.
    """
    if not 0 < level < 1:
        raise UserError("the level must lie in (0, 1)", level, "0.9 expects noise in one token of ten")
    if tokens.shape[1] != height * width:
        raise UserError("tokens do not fit the grid", f"{tokens.shape[1]} for {height} x {width}", "pass (b, h * w)")
    check_tokens(tokens, codebook_size)
    device = tokens.device
    noise = checked_noise(uniform_noise(codebook_size) if noise is None else noise, codebook_size).to(device)
    keep = torch.full((), level, device=device)
    levels = torch.full(tokens.shape, level, dtype=torch.float32, device=device)
    result = torch.empty(tokens.shape, dtype=torch.float32, device=device)
    blocks = Schedule.round_robin(height, width, sweeps=1, block=block).blocks
    for sites in torch.cat(blocks).to(device).split([len(sites) for sites in blocks]):  # one copy for all blocks
        logits = denoiser(tokens.index_fill(1, sites, codebook_size), levels, sites, labels)  # (b, k, v)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        # `signal_logit` with site level 1 and keep = level, of the tokens that are there and no others
        present = tokens[:, sites]
        log_probs = logits.log_softmax(-1).gather(2, present.unsqueeze(2)).squeeze(2)  # (b, k)
        prior = keep.to(logits.dtype).logit()
        odds = prior + (log_probs - noise.to(logits.dtype)[present].log())
        odds = torch.where(odds.isnan() & ~log_probs.isnan(), prior, odds)  # a token that cannot occur says nothing
        result[:, sites] = odds.sigmoid().float()
    if bool(result.isnan().any()):
        raise UserError("the denoiser gave no distribution", "NaN, or every code ruled out", "check its logits")
    return result
