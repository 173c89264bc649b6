"""Samplers: the reverse Glauber chain on a fixed schedule, and the order that follows the signal logit.

Legend: `b` batch, `l` sites, `k` queried sites, `v` codes; the mask id is V.

    denoiser(tokens (B, L), levels (B, L), sites (K,) or (B, K), labels (B,) or None) -> clean logits (B, K,
    V)

Tokens at `sites` hold the mask id. Any callable of that shape will do: a network, `guided`, `truncated`, or
an exact denoiser in a test.

`sample` follows arXiv 2405.17035: from x_T ~ pi, for t = T-1..0, sample the sites of step t from the heat bath
at their levels before step t. With an exact denoiser, one site a step and final level 0 it is exact.
`sample_signal` is ours: one sweep of MaskGIT's decoding (arXiv 2202.04200), whose confidence is the signal
logit, or of a fixed order, then revision of the tokens that look like noise. It is not exact.

Every random number is a uniform generated before the first step, on the CPU, in a fixed order per image, so
that image k of a list of generators depends on its own generator alone.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ggm_image.sampler.base import Callback, Denoiser, Generators
    from ggm_image.sampler.confidence import sample_signal
    from ggm_image.sampler.glauber_chain import sample
    from ggm_image.sampler.guidance import guided, truncated

__all__ = ["Callback", "Denoiser", "Generators", "guided", "sample", "sample_signal", "truncated"]

_HOMES = {
    "Callback": "ggm_image.sampler.base",
    "Denoiser": "ggm_image.sampler.base",
    "Generators": "ggm_image.sampler.base",
    "guided": "ggm_image.sampler.guidance",
    "sample": "ggm_image.sampler.glauber_chain",
    "sample_signal": "ggm_image.sampler.confidence",
    "truncated": "ggm_image.sampler.guidance",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
