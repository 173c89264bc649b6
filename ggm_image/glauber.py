"""One site of the Glauber chain: forward noise, heat bath, and the log-odds that a token is signal.

Legend: `b` batch, `l` sites of the grid (row-major), `v` codes of the codebook.

    forward      x_{t,i} = x_{0,i} with probability level_{t,i}, else a draw from the noise pi
    heat bath    P(x_{t,i} = a | ctx) = level p0(a) + (1 - level) pi(a)
    signal       s(a) = log keep/(1-keep) + log P(x_{t,i} = a | ctx) - log pi(a)

`p0` is the network's clean-token distribution at a site it does not see. The binary classifier "signal or
noise?" of the Glauber generative model (Varma, Nagaraj, Shanmugam, arXiv 2405.17035) and the heat bath are
the same function: pi(a) exp(s(a)) is proportional to P(x_{t,i} = a | ctx). The paper's network emits s
directly; ours emits logits of p0 and gets s from the formula, so that one network serves every schedule.

All arithmetic is in log space, in float32 at least (half precision is widened, float64 is kept).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ggm_image.errors import UserError


def uniform_noise(codebook_size: int) -> Float[Tensor, " v"]:
    """The default noise distribution: every code with probability 1/V."""
    return torch.full((codebook_size,), 1.0 / codebook_size, dtype=torch.float32)


def heat_bath(
    clean_logits: Float[Tensor, "*b v"], level: Float[Tensor, "*#b"] | float, noise: Float[Tensor, " v"]
) -> Float[Tensor, "*b v"]:
    """Log-probabilities of a site's token at its level, given its context.

        log P(x_{t,i} = a | ctx) = log( level softmax(clean_logits)(a) + (1 - level) noise(a) )

    Args:
        clean_logits: unnormalised log p0(a), (..., V); -inf marks a code that is ruled out.
        level: probability in [0, 1] that the site is still clean, (...) or a number.
        noise: distribution over the codes, (V,), sums to 1; zeros are allowed.

    Returns:
        Normalised log-probabilities, (..., V), float32 or wider.

    Raises:
        UserError: shapes that do not fit, a level or noise out of range, NaN, or a row of logits that rules
            out every code.
    """
    level, noise = _checked(clean_logits, level, noise)
    log_probs = heat_bath_unchecked(clean_logits, level, noise)
    _refuse_bad_logits(clean_logits, log_probs)
    return log_probs


def signal_logit(
    clean_logits: Float[Tensor, "*b v"],
    level: Float[Tensor, "*#b"] | float,
    keep: Float[Tensor, "*#b"] | float,
    noise: Float[Tensor, " v"],
) -> Float[Tensor, "*b v"]:
    """Log-odds that token a at a site was kept rather than just sampled from the noise.

        s(a) = log keep/(1-keep) + log P(x_{t,i} = a | ctx) - log noise(a)

    Where a token says nothing (noise(a) = 0 and P(a) = 0: it cannot occur) the prior log-odds of `keep` are
    returned. keep = 0 gives -inf and keep = 1 gives +inf at every code that can occur.

    Args:
        clean_logits: unnormalised log p0(a), (..., V).
        level: the site's level in [0, 1] before the step, (...) or a number.
        keep: probability in [0, 1] that the step leaves the site unchanged, (...) or a number.
        noise: distribution over the codes, (V,).

    Returns:
        Log-odds, (..., V), float32 or wider.

    Raises:
        UserError: as `heat_bath`; also keep outside [0, 1].
    """
    level, noise = _checked(clean_logits, level, noise)
    keep = _probability("keep", keep, clean_logits)
    logit = signal_logit_unchecked(clean_logits, level, keep, noise)
    _refuse_bad_logits(clean_logits, logit)
    return logit


def signal_logit_unchecked(
    clean_logits: Float[Tensor, "*b v"],
    level: Float[Tensor, "*#b"],
    keep: Float[Tensor, "*#b"],
    noise: Float[Tensor, " v"],
) -> Float[Tensor, "*b v"]:
    """`signal_logit` without its checks, for inner loops; logits that hold no distribution give NaN."""
    log_probs = heat_bath_unchecked(clean_logits, level, noise)
    prior = torch.logit(keep).unsqueeze(-1)
    logit = prior + (log_probs - noise.to(log_probs.dtype).log())
    return torch.where(torch.isnan(logit) & ~torch.isnan(log_probs), prior, logit)


def add_noise(
    x_0: Int[Tensor, "b l"],
    level: Float[Tensor, "#b #l"],
    noise: Float[Tensor, " v"],
    *,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "b l"]:
    """Sample x_t given x_0: each token stays with probability `level`, else it is a draw from `noise`.

    Args:
        x_0: clean tokens in [0, V), (B, L).
        level: probability in [0, 1] of staying clean, (B, L) or broadcastable to it.
        noise: distribution over the codes, (V,).
        generator: source of randomness; the numbers are generated on its device (CPU where None).

    Returns:
        x_t, (B, L), on x_0's device.

    Raises:
        UserError: a token, level or noise out of range, or shapes that do not fit.
    """
    level = torch.as_tensor(level, device=x_0.device)
    noise = checked_noise(noise, noise.shape[-1]).to(x_0.device)
    if not _broadcasts(level.shape, x_0.shape):
        raise UserError(
            "level does not fit the tokens",
            f"tokens {tuple(x_0.shape)}, level {tuple(level.shape)}",
            "pass one level per token",
        )
    _check_range("level", level)
    check_tokens(x_0, noise.shape[-1])
    source = generator.device if generator is not None else torch.device("cpu")
    shape = (2, *x_0.shape)
    uniforms = torch.rand(shape, generator=generator, device=source, dtype=torch.float64).to(x_0.device)
    return torch.where(uniforms[0] < level, x_0, sample_noise(noise, uniforms[1]).to(x_0.dtype))


def sample_noise(noise: Float[Tensor, " v"], uniforms: Float[Tensor, "*b"]) -> Int[Tensor, "*b"]:
    """One code of the noise distribution for each uniform number in [0, 1): `sample_codes` of equal rows."""
    # one cumulative sum serves all sites: a row of V numbers for each would cost more than a training step
    cumulative = noise.to(torch.float64).cumsum(0)
    return torch.searchsorted(cumulative, uniforms.to(torch.float64) * cumulative[-1], right=True)


def sample_codes(log_probs: Float[Tensor, "*b v"], uniforms: Float[Tensor, "*b"]) -> Int[Tensor, "*b"]:
    """Sample one code a row by inversion of the cumulative distribution, one uniform number in [0, 1) each.

    First among about sqrt(V) groups of codes, then inside the group: two short float64 cumulative sums in place
    of one over all codes. A code of probability zero is never sampled: the first entry of a cumulative sum that
    exceeds the threshold always has a positive increment. A row of NaN gives the impossible code V.
    """
    return sample_codes_of(log_probs.exp(), uniforms)


def sample_codes_of(probs: Float[Tensor, "*b v"], uniforms: Float[Tensor, "*b"]) -> Int[Tensor, "*b"]:
    """`sample_codes` of probabilities, which need not add up to 1."""
    if probs.device.type == "mps":  # has no float64
        return sample_codes_of(probs.cpu(), uniforms.cpu()).to(probs.device)
    v = probs.shape[-1]
    size = math.isqrt(v - 1) + 1
    groups = F.pad(probs, (0, -v % size)).unflatten(-1, (-1, size))  # (..., groups, size)
    cumulative = groups.sum(-1, dtype=torch.float64).cumsum(-1)  # (..., groups)
    threshold = uniforms.to(torch.float64).unsqueeze(-1) * cumulative[..., -1:]  # (..., 1)
    found = torch.searchsorted(cumulative, threshold, right=True)
    group = found.clamp(max=groups.shape[-2] - 1)
    inside = groups.take_along_dim(group.unsqueeze(-1), -2).squeeze(-2).cumsum(-1, dtype=torch.float64)  # (..., size)
    before = F.pad(cumulative, (1, 0)).gather(-1, group)
    # the two sums round differently: the rest of the threshold must not pass the group's end
    rest = (threshold - before).minimum(inside[..., -1:].nextafter(inside.new_zeros(())))
    code = group * size + torch.searchsorted(inside, rest, right=True)
    return torch.where(found < groups.shape[-2], code, v).squeeze(-1)


def heat_bath_unchecked(
    clean_logits: Float[Tensor, "*b v"], level: Float[Tensor, "*#b"], noise: Float[Tensor, " v"]
) -> Float[Tensor, "*b v"]:
    """`heat_bath` without its checks, for inner loops (a check waits for the device)."""
    log_clean = torch.log_softmax(_widened(clean_logits), dim=-1)
    level = level.to(log_clean.dtype).unsqueeze(-1)
    return torch.logaddexp(level.log() + log_clean, torch.log1p(-level) + noise.to(log_clean.dtype).log())


def heat_bath_probs(
    clean_logits: Float[Tensor, "*b v"], level: Float[Tensor, "*#b"], noise: Float[Tensor, " v"]
) -> Float[Tensor, "*b v"]:
    """The probabilities of `heat_bath`, unchecked: for sampling alone, the logarithms would be most of the cost."""
    clean = torch.softmax(_widened(clean_logits), dim=-1)
    level = level.to(clean.dtype).unsqueeze(-1)
    return torch.addcmul((1 - level) * noise.to(clean.dtype), level, clean)


def check_tokens(tokens: Int[Tensor, "*b"], codebook_size: int, *, lowest: int = 0) -> None:
    """Raise UserError unless every token lies in [lowest, codebook_size)."""
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise UserError("tokens must be integers", tokens.dtype, "encode images with a tokenizer first")
    if tokens.numel() == 0:
        return
    low, high = int(tokens.min()), int(tokens.max())
    if low < lowest or high >= codebook_size:
        raise UserError(
            f"tokens must lie in [{lowest}, {codebook_size})",
            f"got {low} to {high}",
            "was this set encoded with another tokenizer?",
        )


def checked_noise(noise: Float[Tensor, " v"], codebook_size: int) -> Float[Tensor, " v"]:
    """The noise distribution in float32 or wider; UserError unless it is one, over V codes."""
    if noise.shape != (codebook_size,):
        raise UserError(
            "noise must hold one probability a code",
            f"shape {tuple(noise.shape)}, {codebook_size} codes",
            "pass a vector of the codebook's size",
        )
    noise = _widened(noise)
    total = float(noise.sum())
    if not (float(noise.min()) >= 0 and abs(total - 1) < 1e-4):
        raise UserError(
            "noise must be a probability distribution",
            f"minimum {float(noise.min()):g}, sum {total:g}",
            "divide counts by their sum",
        )
    return noise


def _widened(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _checked(clean_logits: Tensor, level: Tensor | float, noise: Tensor) -> tuple[Tensor, Tensor]:
    if clean_logits.ndim == 0:
        raise UserError("clean logits need a last axis of codes", "shape ()", "pass (..., V)")
    noise = checked_noise(noise.to(clean_logits.device), clean_logits.shape[-1])
    dtype = _widened(clean_logits).dtype
    return _probability("level", level, clean_logits), noise.to(dtype)


def _probability(name: str, value: Tensor | float, clean_logits: Tensor) -> Tensor:
    dtype = _widened(clean_logits).dtype
    value = torch.as_tensor(value, device=clean_logits.device).to(dtype)
    if not _broadcasts(value.shape, clean_logits.shape[:-1]):
        raise UserError(
            f"{name} does not fit the logits",
            f"logits {tuple(clean_logits.shape)}, {name} {tuple(value.shape)}",
            f"pass one {name} a row of logits",
        )
    _check_range(name, value)
    return value


def _check_range(name: str, value: Tensor) -> None:
    if not bool(((value >= 0) & (value <= 1)).all()):  # written so that NaN fails too
        raise UserError(
            f"{name} must lie in [0, 1]", f"got {float(value.min()):g} to {float(value.max()):g}", "pass probabilities"
        )


def _broadcasts(shape: torch.Size, target: torch.Size) -> bool:
    if len(shape) > len(target):
        return False
    return all(a in (1, b) for a, b in zip(reversed(shape), reversed(target), strict=False))


def _refuse_bad_logits(clean_logits: Tensor, result: Tensor) -> None:
    # log_softmax spreads NaN, +inf and an all -inf row over the whole row: looking at one code is enough
    if bool(torch.isnan(result[..., 0]).any()):
        got = "NaN" if bool(torch.isnan(clean_logits).any()) else "a row of -inf, or +inf"
        raise UserError("clean logits must hold a distribution", got, "check the network and the truncation")
