"""Denoisers over denoisers: classifier-free guidance, temperature, top-k, top-p."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.sampler.base import Denoiser, denoisers_for_calls


def guided(denoiser: Denoiser, weight: float, null_label: int, *, power: float = 0.0) -> Denoiser:
    """Classifier-free guidance on the clean-token logits: u = u_uncond + w (u_cond - u_uncond).

        w = 1 + (weight - 1) m^power,   m = the mean level of the row's sites

    With power 0 the weight is constant. With a larger power it starts at 1 and grows as the image is filled, so early
    tokens stay diverse and later ones follow the class. Muse (arXiv 2301.00704) increases it linearly with the step;
    here it follows the share of sites that are filled.

    w = 1 is the denoiser itself and 0 the unconditional one, a call each; any other doubles the batch.
    `null_label` is the class id of "no class".
    """
    if not math.isfinite(weight):
        raise UserError("the guidance weight must be finite", weight, "1 turns guidance off")
    if not (power >= 0 and math.isfinite(power)):
        raise UserError("the power of guidance must not be negative", power, "0 is a constant weight")
    return denoiser if weight == 1 else Guided(denoiser, weight, null_label, power)


@dataclass(frozen=True)
class Guided:
    """What `guided` returns: a denoiser whose weight follows the levels of each row, or those of a plan."""

    denoiser: Denoiser
    weight: float
    null_label: int
    power: float

    def __call__(self, tokens: Tensor, levels: Tensor, sites: Tensor, labels: Tensor | None) -> Tensor:
        if self.power == 0:
            return self._with_weight(self.denoiser, self.weight, tokens, levels, sites, labels)
        weights = self._weights(levels.float().mean(dim=1))[:, None, None]  # (B, 1, 1)
        if bool((weights == 1).all()):
            return self._conditional(self.denoiser, tokens, levels, sites, labels)
        return self._with_weight(self.denoiser, weights, tokens, levels, sites, labels)

    def for_calls(self, filled: Sequence[float], device: torch.device) -> list[Denoiser]:
        """As `PlannedDenoiser`: a call of weight 1 is known beforehand, and asks for the class alone."""
        inner = denoisers_for_calls(self.denoiser, filled, device)
        if self.power == 0:
            return [partial(self._with_weight, one, self.weight) for one in inner]
        weights = self._weights(torch.tensor(filled, dtype=torch.float32))[:, None, None, None]  # (T, 1, 1, 1)
        on_device = weights.to(device)
        return [
            partial(self._conditional, one) if weight == 1 else partial(self._with_weight, one, on_device[t])
            for t, (one, weight) in enumerate(zip(inner, weights.flatten().tolist(), strict=True))
        ]

    def _weights(self, filled: Tensor) -> Tensor:
        return 1 + (self.weight - 1) * filled.pow(self.power)

    def _conditional(
        self, denoiser: Denoiser, tokens: Tensor, levels: Tensor, sites: Tensor, labels: Tensor | None
    ) -> Tensor:
        return denoiser(tokens, levels, sites, _given(labels))

    def _with_weight(
        self,
        denoiser: Denoiser,
        weight: float | Tensor,
        tokens: Tensor,
        levels: Tensor,
        sites: Tensor,
        labels: Tensor | None,
    ) -> Tensor:
        labels = _given(labels)
        null = torch.full_like(labels, self.null_label)
        if not isinstance(weight, Tensor) and weight == 0:
            return denoiser(tokens, levels, sites, null)
        both_sites = sites if sites.ndim == 1 else sites.repeat(2, 1)
        both = denoiser(tokens.repeat(2, 1), levels.repeat(2, 1), both_sites, torch.cat([labels, null]))
        conditional, unconditional = both.chunk(2)
        mixed = unconditional + weight * (conditional - unconditional)
        # A row of weight 1 gets what it would get alone: the sum above rounds.
        return torch.where(weight == 1, conditional, mixed) if isinstance(weight, Tensor) else mixed


def _given(labels: Tensor | None) -> Tensor:
    if labels is None:
        raise UserError("guidance needs classes", "no labels", "pass labels, or weight 1")
    return labels


def truncated(
    denoiser: Denoiser, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Denoiser:
    """Temperature, then top-k, then top-p on the clean-token logits; ruled-out codes get -inf.

    top_k keeps the k likeliest codes (and ties with the last), top_p the smallest set of likeliest codes
    that holds at least that probability. All off is the denoiser itself.
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise UserError("the temperature must be positive", temperature, "1 turns it off")
    if top_k is not None and top_k < 1:
        raise UserError("top-k must be at least 1", top_k, "leave it out to turn it off")
    if top_p is not None and not 0 < top_p <= 1:
        raise UserError("top-p must lie in (0, 1]", top_p, "1 turns it off")
    if temperature == 1 and top_k is None and top_p in (None, 1):
        return denoiser

    return Truncated(denoiser, temperature, top_k, top_p)


@dataclass(frozen=True)
class Truncated:
    """What `truncated` returns."""

    denoiser: Denoiser
    temperature: float
    top_k: int | None
    top_p: float | None

    def __call__(self, tokens: Tensor, levels: Tensor, sites: Tensor, labels: Tensor | None) -> Tensor:
        return self._truncate(self.denoiser, tokens, levels, sites, labels)

    def for_calls(self, filled: Sequence[float], device: torch.device) -> list[Denoiser]:
        """As `PlannedDenoiser`."""
        return [partial(self._truncate, one) for one in denoisers_for_calls(self.denoiser, filled, device)]

    def _truncate(
        self, denoiser: Denoiser, tokens: Tensor, levels: Tensor, sites: Tensor, labels: Tensor | None
    ) -> Tensor:
        logits = denoiser(tokens, levels, sites, labels).float() / self.temperature
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            least = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        if self.top_p is not None and self.top_p < 1:
            ordered, codes = logits.sort(dim=-1, descending=True)
            probs = ordered.softmax(-1)
            beyond = probs.cumsum(-1) - probs >= self.top_p  # the likelier codes alone hold top_p
            logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, codes, beyond), -torch.inf)
        return logits
