"""Signal map: the model's own probability, token by token, that a picture's token is signal.

Legend: `b` batch, `l` sites of the grid, `k` queried sites, `v` codes.

The classifier of arXiv 2405.17035 judges a token just drawn; here it judges the tokens of a finished picture. Suppose
that each token is the clean one with probability `level` and a draw from the noise pi otherwise. Given all other
tokens,

    P(signal | x_i = a, ctx) = level p0(a) / (level p0(a) + (1 - level) pi(a)) = sigma(s(a)),

the signal logit of a step with keep = level that starts from clean tokens. Every site is masked in turn, a few
spread ones in one call: neighbours are never hidden from each other. No peer has this map: it is not in the paper.
"""

import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.glauber import check_tokens, signal_logit, uniform_noise
from ggm_image.sampler import Denoiser
from ggm_image.schedule import Schedule

SHOWN_SIDE = 256
"""Pictures are enlarged by a whole factor until their shorter side has so many pixels."""

MOST_SHOWN = 4096
"""Pictures whose longer side has more pixels are made smaller."""

NOISE_COLOUR = (230, 30, 30)


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
    noise = (uniform_noise(codebook_size) if noise is None else noise).to(tokens.device)
    levels = torch.full(tokens.shape, level, dtype=torch.float32, device=tokens.device)
    result = torch.empty(tokens.shape, dtype=torch.float32, device=tokens.device)
    for block_sites in Schedule.round_robin(height, width, sweeps=1, block=block).blocks:
        sites = block_sites.to(tokens.device)
        logits = denoiser(tokens.index_fill(1, sites, codebook_size), levels, sites, labels)  # (b, k, v)
        odds = signal_logit(logits, 1.0, level, noise).gather(2, tokens[:, sites, None])  # (b, k, 1)
        result[:, sites] = odds.squeeze(2).sigmoid().float()
    return result


def heat_map(picture: Image.Image, probability: Float[Tensor, "rows columns"], cell: int) -> Image.Image:
    """The picture, and beside it the picture in grey under red that is the stronger the less a token looks like signal.

    Args:
        picture: of any mode; what lies beyond the last whole cell at its right and lower edge is left out.
        probability: of signal, in [0, 1].
        cell: pixels per side of a token's cell.
    """
    original = picture.convert("RGB").crop((0, 0, probability.shape[1] * cell, probability.shape[0] * cell))
    scale = max(1, -(-SHOWN_SIDE // min(original.size)))
    size = original.width * scale, original.height * scale
    if max(size) > MOST_SHOWN:
        original.thumbnail((MOST_SHOWN, MOST_SHOWN))
        size = original.size
    else:
        original = original.resize(size, Image.Resampling.NEAREST)
    opacity = ((1 - probability).clamp(0, 1) * 217).round().to(torch.uint8).cpu().numpy()  # 85 % at most
    over = Image.fromarray(opacity).resize(size, Image.Resampling.NEAREST)
    tinted = Image.composite(Image.new("RGB", size, NOISE_COLOUR), original.convert("L").convert("RGB"), over)
    sheet = Image.new("RGB", (2 * size[0] + 8, size[1]), "white")
    sheet.paste(original, (0, 0))
    sheet.paste(tinted, (size[0] + 8, 0))
    return sheet
