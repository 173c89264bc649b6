"""Training losses: is this token signal or noise?

Legend: `n` queried sites of a batch, any leading shape; `v` codes; pi = `noise`; nu = `contrast`.

A step leaves token x_t with probability keep (signal, y = 1) or replaces it by a draw from pi (noise, y =
0). With q(a) = level p0(a) + (1 - level) pi(a) the signal logit is s(a) = log keep/(1-keep) + log
q(a)/pi(a), and the loss of arXiv 2405.17035 is binary cross-entropy on y. "binary" goes beyond the paper's
single draw: it takes the expectation over the noise draw and over x_t given x_0, and sets the number nu =
(1-keep)/keep of noise draws a signal draw freely (every value has the same minimiser; nu -> infinity is
maximum likelihood):

    binary = -[ level log sigma(s(x_0)) + (1-level) sum_a pi(a) log sigma(s(a))
                + nu sum_b pi(b) log sigma(-s(b)) ]

which is the mean of "binary-sampled" at keep = 1/(1 + nu), divided by that keep.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.glauber import sample_codes

_AT_ONCE = {"cpu": 1 << 18}
"""Numbers of an array that is worked on at once: few enough for a processor's cache, as many as fit on a GPU."""
LOSSES = ("binary", "binary-sampled", "cross-entropy", "cross-entropy-noisy")


def loss(
    name: str,
    clean_logits: Float[Tensor, "*n v"],
    x_0: Int[Tensor, "*n"],
    level: Float[Tensor, "*#n"],
    keep: Float[Tensor, "*#n"] | float | None,
    noise: Float[Tensor, " v"],
    *,
    contrast: float | None = 64.0,
    generator: torch.Generator | None = None,
    uniforms: Float[Tensor, "*n 3"] | None = None,
) -> Float[Tensor, ""]:
    """Mean loss over the queried sites; all names share the minimiser p0(a) = P(x_{0,i} = a | ctx).

    Args:
        name: "binary" (the default of this package), "binary-sampled" (the paper's single draw),
            "cross-entropy" (-log p0(x_0)) or "cross-entropy-noisy" (-log q(x_t), mean over x_t given x_0).
        clean_logits: logits of p0, (..., V), any float type; the arithmetic is float32 or wider.
        x_0: clean tokens in [0, V), (...).
        level: each site's level in [0, 1], (...). At level 0 a site teaches nothing.
        keep: probability in (0, 1) that the step leaves the token, (...) or a number; used by
            "binary-sampled", and by "binary" where contrast is None. Any value has the same minimiser, so it
            need not be the schedule's.
        noise: distribution over the codes, (V,). The binary losses do not tell apart codes that it never
            draws.
        contrast: nu > 0, noise draws a signal draw, in place of keep; "binary" only.
        generator: for "binary-sampled"; the numbers are generated on its device (CPU where None).
        uniforms: for "binary-sampled": three numbers in [0, 1] a site in place of draws; (..., 3).

    Raises:
        UserError: an unknown name, shapes that do not fit, or keep or contrast out of range.
    """
    if name not in LOSSES:
        raise UserError("unknown loss", name, f"choose one of {', '.join(LOSSES)}")
    if clean_logits.shape[:-1] != x_0.shape or noise.shape != clean_logits.shape[-1:]:
        raise UserError(
            "logits, tokens and noise do not fit",
            f"{tuple(clean_logits.shape)}, {tuple(x_0.shape)}, {tuple(noise.shape)}",
            "pass (..., V), (...) and (V,)",
        )
    # autocast would run the weighted sums in half precision
    with torch.autocast(clean_logits.device.type, enabled=False):
        wide = torch.float64 if clean_logits.dtype == torch.float64 else torch.float32
        level, noise = (value.to(clean_logits.device, wide) for value in (level.expand(x_0.shape), noise))
        if name == "binary" and not torch.compiler.is_compiling():
            # widens a few rows at a time
            return _binary_at_once(clean_logits, x_0, level, _noise_draws(keep, contrast, level), noise).mean()
        logits = clean_logits.to(wide)
        if name == "binary":
            per_site = _binary(logits, x_0, level, _noise_draws(keep, contrast, level), noise)
        elif name == "binary-sampled":
            per_site = _binary_sampled(logits, x_0, level, _checked_keep(keep, level), noise, generator, uniforms)
        elif name == "cross-entropy":
            return F.cross_entropy(logits.flatten(0, -2), x_0.flatten())
        else:
            per_site = _cross_entropy_noisy(logits, x_0, level, noise)
        return per_site.mean()


def _binary(
    logits: Float[Tensor, "*n v"],
    x_0: Int[Tensor, "*n"],
    level: Float[Tensor, "*n"],
    nu: Float[Tensor, "*#n"] | float,
    noise: Float[Tensor, " v"],
) -> Float[Tensor, "*n"]:
    # In linear space, with r = q(a)/pi(a): log sigma(-s) = -log(1 + r/nu) and log sigma(s) = log(r/nu) - log(1 + r/nu).
    # Sums of positive numbers, so nothing is lost, at half the cost of log-space arithmetic over all codes.
    log_odds = torch.log_softmax(logits, dim=-1) - _log_noise(noise)  # log p0(a)/pi(a)
    ratio = level.unsqueeze(-1) * log_odds.exp() + (1 - level).unsqueeze(-1)
    spread = nu if isinstance(nu, float) else nu.unsqueeze(-1)
    log_nu = math.log(nu) if isinstance(nu, float) else nu.log()
    mean_softplus = ((ratio / spread).log1p() * noise).sum(-1)
    # at level 1 a ratio may underflow to 0; its logarithm then has the weight 1 - level = 0, and must be finite
    mean_s = (ratio.clamp_min(torch.finfo(ratio.dtype).tiny).log() * noise).sum(-1) - log_nu
    # the clean token's own term in log space: its gradient must not vanish when p0(x_0) underflows
    own = torch.arange(len(noise), device=x_0.device) == x_0.unsqueeze(-1)
    log_odds_own = torch.where(own, log_odds, 0.0).sum(-1)  # not gather: its gradient is a scatter
    s_clean = torch.logaddexp(log_odds_own + level.log(), torch.log1p(-level)) - log_nu
    # a clean token of probability zero under the noise is certainly signal, s = +inf: it costs nothing
    signal = torch.where(noise[x_0] > 0, F.softplus(-s_clean), 0.0)
    return level * signal + (1 - level) * (mean_softplus - mean_s) + nu * mean_softplus


def _binary_at_once(
    logits: Float[Tensor, "*n v"],
    x_0: Int[Tensor, "*n"],
    level: Float[Tensor, "*n"],
    nu: Float[Tensor, "*#n"] | float,
    noise: Float[Tensor, " v"],
) -> Float[Tensor, "*n"]:
    """`_binary` where nothing is compiled: one array of (n, V) is kept, and less time is taken."""
    spread = nu.expand(x_0.shape).flatten() if isinstance(nu, Tensor) else level.new_full((x_0.numel(),), nu)
    rows = logits.flatten(0, -2), x_0.flatten(), level.flatten(), spread
    return _BinaryAtOnce.apply(*rows, noise).view(x_0.shape)


class _BinaryAtOnce(torch.autograd.Function):
    """The binary loss and its gradient, computed together while a few rows are in the cache.

    With r(a) = q(a)/pi(a), h(a) = p0(a) dL/dp0(a) and c the clean token, the gradient in the logits is h - p0 sum(h):

        h(a) = level p0(a) [(1 - level + nu) / (nu + r(a)) - (1 - level) / r(a)]
               - 1[a = c] level sigma(-s(c)) (1 - (1 - level) / r(c))
    """

    @staticmethod
    def forward(
        ctx: Any,
        logits: Float[Tensor, "n v"],
        x_0: Int[Tensor, " n"],
        level: Float[Tensor, " n"],
        nu: Float[Tensor, " n"],
        noise: Float[Tensor, " v"],
    ) -> Float[Tensor, " n"]:
        cost = torch.empty_like(level)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        log_noise = _log_noise(noise)
        of_noise = noise, log_noise, (-log_noise).exp()
        size = max(1, _AT_ONCE.get(logits.device.type, 1 << 24) // logits.shape[-1])
        for start in range(0, len(logits), size):
            rows = slice(start, start + size)
            part = None if gradient is None else gradient[rows]
            own = logits[rows].to(level), x_0[rows, None], level[rows, None], nu[rows, None]
            cost[rows] = _binary_of_rows(*own, *of_noise, gradient=part).squeeze(1)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return cost

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Float[Tensor, " n"]) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad[:, None].to(gradient), None, None, None, None


def _binary_of_rows(
    logits: Float[Tensor, "m v"],
    x_0: Int[Tensor, "m 1"],
    level: Float[Tensor, "m 1"],
    nu: Float[Tensor, "m 1"],
    noise: Float[Tensor, " v"],
    log_noise: Float[Tensor, " v"],
    one_over_noise: Float[Tensor, " v"],
    *,
    gradient: Tensor | None,
) -> Float[Tensor, "m 1"]:
    """The loss of a few rows; writes its gradient in the logits. The last two of the noise are as of `_log_noise`."""
    top = logits.amax(-1, keepdim=True)
    p_0 = (logits - top).exp_()
    total = p_0.sum(-1, keepdim=True)
    p_0 *= total.reciprocal()
    # at level 1 a ratio may underflow to 0; its logarithm then has the weight 1 - level = 0, and must be finite
    ratio = (p_0 * one_over_noise).mul_(level).add_(1 - level).clamp_min_(torch.finfo(p_0.dtype).tiny)
    beyond = ratio + nu
    mean_softplus = ((beyond / nu).log_() @ noise)[:, None]
    mean_log_ratio = (ratio.log() @ noise)[:, None]
    noise_term = (1 - level + nu) * mean_softplus - (1 - level) * (mean_log_ratio - nu.log())
    # the clean token's own term in log space: its gradient must not vanish when p0(x_0) underflows
    log_signal = logits.gather(1, x_0) - top - total.log() - log_noise[x_0] + level.log()
    log_ratio = torch.logaddexp(log_signal, torch.log1p(-level))
    # a clean token of probability zero under the noise is certainly signal, s = +inf: it costs nothing
    weight = level * (noise[x_0] > 0)
    if gradient is not None:
        h = (p_0 / beyond).mul_(level * (1 - level + nu))
        h -= (p_0 / ratio).mul_(level * (1 - level))
        h *= noise > 0
        own = weight * torch.sigmoid(nu.log() - log_ratio) * (log_signal - log_ratio).exp()
        h.scatter_add_(1, x_0, -own)
        gradient.copy_(h.sub_(p_0.mul_(h.sum(-1, keepdim=True))))
    return weight * F.softplus(nu.log() - log_ratio) + noise_term


def _binary_sampled(
    logits: Float[Tensor, "*n v"],
    x_0: Int[Tensor, "*n"],
    level: Float[Tensor, "*n"],
    keep: Float[Tensor, "*#n"],
    noise: Float[Tensor, " v"],
    generator: torch.Generator | None,
    uniforms: Float[Tensor, "*n 3"] | None,
) -> Float[Tensor, "*n"]:
    source = generator.device if generator is not None else torch.device("cpu")
    if uniforms is None:
        u = torch.rand((3, *x_0.shape), generator=generator, device=source, dtype=torch.float64)
    else:
        u = uniforms.movedim(-1, 0)
    u = u.to(logits.device)
    u = u.clamp(max=1 - torch.finfo(u.dtype).eps / 2)  # mixed precision hands them on in float32, rounded up to 1
    # the token is noise if it was noise before the step, or if the step replaces it: both are draws from pi
    signal = u[1] < keep
    sampled = sample_codes(noise.log().expand_as(logits), u[2])
    token = torch.where((u[0] < level) & signal, x_0, sampled)
    s = _log_ratio(logits, level, noise).gather(-1, token.unsqueeze(-1)).squeeze(-1) + torch.logit(keep)
    cost = F.softplus(torch.where(signal, -s, s))
    return torch.where(noise[token] > 0, cost, 0.0)


def _cross_entropy_noisy(
    logits: Float[Tensor, "*n v"], x_0: Int[Tensor, "*n"], level: Float[Tensor, "*n"], noise: Float[Tensor, " v"]
) -> Float[Tensor, "*n"]:
    log_ratio = _log_ratio(logits, level, noise)
    log_noise = _log_noise(noise)
    code = x_0.unsqueeze(-1)
    mixed = log_ratio.gather(-1, code).squeeze(-1) + log_noise[x_0]
    unmixed = torch.log_softmax(logits, dim=-1).gather(-1, code).squeeze(-1)
    # x_0 outside the noise: q(x_0) = level p0(x_0), and level log level has the limit 0
    clean = torch.where(noise[x_0] > 0, level * mixed, level * unmixed + torch.xlogy(level, level))
    return -(clean + (1 - level) * (log_ratio @ noise + log_noise @ noise))


def _log_ratio(
    logits: Float[Tensor, "*n v"], level: Float[Tensor, "*n"], noise: Float[Tensor, " v"]
) -> Float[Tensor, "*n v"]:
    """log q(a)/pi(a); finite (and without weight in any loss) at codes of probability zero under the noise."""
    log_noise = _log_noise(noise)
    log_clean = torch.log_softmax(logits, dim=-1)
    level = level.unsqueeze(-1)
    return torch.logaddexp(log_clean + (level.log() - log_noise), torch.log1p(-level))


def _log_noise(noise: Float[Tensor, " v"]) -> Float[Tensor, " v"]:
    """log pi(a), and 0 where pi(a) = 0."""
    return noise.masked_fill(noise == 0, 1.0).log()


def _noise_draws(keep: Tensor | float | None, contrast: float | None, like: Tensor) -> Tensor | float:
    if contrast is None:
        keep = _checked_keep(keep, like)
        return (1 - keep) / keep
    if not (contrast > 0 and math.isfinite(contrast)):
        raise UserError("contrast must be a positive number", contrast, "1 is the paper's, 64 learns faster")
    return float(contrast)


def _checked_keep(keep: Tensor | float | None, like: Tensor) -> Tensor:
    if keep is None:
        raise UserError("this loss needs keep", keep, "pass a probability in (0, 1), e.g. 0.5")
    if not isinstance(keep, Tensor):  # checked before it is on a device, as a check of what is there waits for it
        if not 0 < keep < 1:
            raise UserError("keep must lie in (0, 1)", keep, "use for example 0.5")
        return torch.full((), keep, dtype=like.dtype, device=like.device)
    keep = keep.to(like)
    if not bool(((keep > 0) & (keep < 1)).all()):
        got = f"got {float(keep.min()):g} to {float(keep.max()):g}"
        raise UserError("keep must lie in (0, 1)", got, "use for example 0.5")
    return keep
