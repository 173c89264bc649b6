"""An observation of the whole image in the heat bath: the prior times a likelihood.

Legend: `b` batch, `l` sites, `v` codes, `e` latent width.

An observation o says something about every site: an enlarged coarse image, a small image, colour hints. With a
likelihood that factorises over the sites, l_i(a) = P(o_i | x_i = a), the posterior's heat bath at site i is

    P(x_i = a | x_{-i}, o)  is proportional to  P(x_i = a | x_{-i}) l_i(a),

so log l_i is added to the clean-token logits, after guidance, temperature and truncation, before they are mixed with
the noise. A code that truncation rules out stays ruled out; a site whose likelihood excludes every remaining code is
an error. The signal logit that orders and revises sites is then the posterior's.

One site a step at signal level 1 is a Gibbs sampler whose stationary law is the exact posterior. At lower levels, and
where other sites are still masked, the likelihood of those sites is not accounted for: the first sweep is
approximate, and later sweeps correct it. Where the sites are independent under the prior, a single sweep is exact.
This is not in the paper (arXiv 2405.17035).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ggm_image.errors import UserError


def latent_log_likelihood(
    distances: Float[Tensor, "b l v"], tau: float, weight: Float[Tensor, "b l"] | None = None
) -> Float[Tensor, "b l v"]:
    """log l_i(a) = -w_i |z_i - e_a|^2 / (tau d), d the row's median squared distance from z_i to its nearest code.

    The limit tau -> infinity is the prior, tau -> 0 the nearest code. Each row is scaled by its own d, so that it
    does not depend on the other rows.

    Args:
        distances: |z_i - e_a|^2 of the observation's latents z to the codes e, (B, L, V), at least 0.
        tau: how far the samples may depart from the observation, in units of the tokenizer's own error, > 0.
        weight: w in [0, 1], (B, L): how much of each site is observed; 1 everywhere by default. A site of weight 0 is
            not observed: its likelihood is flat, and it does not count for d.

    Returns:
        (B, L, V), 0 at the nearest code of each site and negative elsewhere.

    Raises:
        UserError: tau out of range.
    """
    check_tau(tau)
    nearest = distances.amin(dim=-1, keepdim=True)  # (b, l, 1)
    counted = nearest if weight is None else nearest.masked_fill(weight.unsqueeze(-1) == 0, torch.nan)
    scale = counted.nanmedian(dim=1, keepdim=True).values  # (b, 1, 1)
    # latents that are codes themselves have d = 0, and a tiny tau underflows: both are the nearest code. Where nothing
    # is observed d is NaN, and any number does.
    scale = (tau * scale).nan_to_num(nan=1.0).clamp(min=torch.finfo(distances.dtype).tiny)
    log_likelihood = (nearest - distances) / scale
    if weight is None:
        return log_likelihood
    seen = weight.unsqueeze(-1)
    return torch.where(seen == 0, 0.0, seen * log_likelihood)  # not 0 * -inf


def check_tau(tau: float) -> None:
    """Raise UserError unless tau is a positive number."""
    if not (tau > 0 and math.isfinite(tau)):
        raise UserError("tau must be positive", tau, "larger values follow the observation less closely")
