"""Measurements during a run: validation likelihood, and a grid of samples."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from ggm_image.data.token_cache.manifest import Manifest
from ggm_image.errors import UserError
from ggm_image.glauber import add_noise, heat_bath_unchecked
from ggm_image.image.io import save_png
from ggm_image.image.preprocess import to_uint8
from ggm_image.image.visualize import image_grid
from ggm_image.network import Transformer
from ggm_image.sampler import sample_signal
from ggm_image.tokenizers.base import Tokenizer
from ggm_image.tokenizers.registry import load_tokenizer
from ggm_image.training.batches import move_together
from ggm_image.training.dataset import TokenSet

VALIDATION_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
MASKED_SHARES = (0.25, 0.5, 0.75, 1.0)
QUERIED = 0.25
"""Share of the sites that is asked for at each level."""
SETTINGS = {f"nll_level_{a:g}": (a, QUERIED) for a in VALIDATION_LEVELS}
SETTINGS |= {f"nll_masked_{r:g}": (1.0, r) for r in MASKED_SHARES}
FIGURES = tuple(SETTINGS)


@torch.no_grad()
def val_nll(
    network: Transformer,
    val_set: TokenSet,
    noise: Float[Tensor, " v"],
    *,
    seed: int = 0,
    batch_size: int = 250,
    figures: Sequence[str] = FIGURES,
) -> dict[str, float]:
    """Validation negative log-likelihood of the heat bath, nats per token.

    ``nll_level_a``: all sites at level a, a random quarter of them masked and asked for: the mean over x_t given
    x_0 of -log P(x_{t,i} | rest). ``nll``: the mean over the levels. ``nll_masked_r``: a share r of the sites masked,
    the others clean: -log p0(x_{0,i}), which is MaskGIT's loss. Noise and sites come from ``seed`` alone.

    Args:
        figures: which; ``nll`` is added if all are requested.
    """
    device, v = noise.device, network.config.codebook_size
    sites_total, noise_here = val_set.tokens.shape[1], noise.cpu()
    costs: dict[str, list[Tensor]] = {}
    counts: dict[str, int] = {}
    for name in figures:
        a, share = SETTINGS[name]
        generator = torch.Generator().manual_seed(seed)
        costs[name], counts[name] = [], 0
        for start in range(0, len(val_set), batch_size):
            x_0, labels = val_set.rows(torch.arange(start, min(start + batch_size, len(val_set))))
            levels = torch.full(x_0.shape, a)
            sites = torch.randperm(sites_total, generator=generator)[: max(1, round(share * sites_total))]
            tokens = add_noise(x_0, levels, noise_here, generator=generator)
            tokens[:, sites] = v
            moved = move_together([tokens, sites, labels, x_0[:, sites]], device)
            tokens, sites, labels, x_0 = moved
            logits = network(tokens, torch.full(tokens.shape, a, device=device), sites, labels)
            with torch.autocast(device.type, enabled=False):
                cost = _nll(logits, x_0, a, noise)
            costs[name].append(cost.sum())
            counts[name] += cost.numel()
    # the only wait for the device
    sums = torch.stack([cost for found in costs.values() for cost in found]).cpu().tolist()
    if any(map(math.isnan, sums)):
        raise UserError("held-out likelihood must be a number", "NaN", "resume with a lower train.learning_rate")
    result = {}
    for name, found in costs.items():
        part, sums = sums[: len(found)], sums[len(found) :]
        result[name] = sum(part) / counts[name]
    if set(figures) == set(FIGURES):
        result["nll"] = mean_nll(result)
    return result


def mean_nll(values: Mapping[str, float]) -> float:
    """The mean over the levels."""
    return sum(values[f"nll_level_{a:g}"] for a in VALIDATION_LEVELS) / len(VALIDATION_LEVELS)


def _nll(
    logits: Float[Tensor, "b k v"], x_0: Int[Tensor, "b k"], level: float, noise: Float[Tensor, " v"]
) -> Float[Tensor, "b k"]:
    """-log P(x_t | rest), its mean over x_t given x_0."""
    if level == 1:
        return F.cross_entropy(logits.transpose(1, 2), x_0, reduction="none")
    log_q = heat_bath_unchecked(logits, torch.full(x_0.shape, level, device=logits.device), noise)
    clean = log_q.gather(2, x_0.unsqueeze(2)).squeeze(2)
    return -(level * clean + (1 - level) * (log_q * noise).sum(2))


def own_tokenizer(manifest: Manifest, device: str = "cpu") -> Tokenizer:
    """The tokenizer that made a token cache."""
    tokenizer = load_tokenizer(manifest.tokenizer_source or manifest.tokenizer_name, device=device)
    if tokenizer.sha256 != manifest.tokenizer_sha256:
        what = f"{manifest.tokenizer_name} here is not the one the images were encoded with"
        raise UserError(what, tokenizer.sha256[:12], "encode them again")
    return tokenizer


def sample_grid(network: Transformer, manifest: Manifest, path: Path, *, seed: int, count: int = 16) -> str:
    """Sample a few images, one class after the other, and write them as one PNG.

    Args:
        manifest: of the token cache; names the tokenizer.
        seed: the same noise every time, so that grids of a run can be compared.

    Returns:
        Why nothing was sampled, or an empty string: a run does not end for the lack of a tokenizer.
    """
    device = network.site.weight.device
    try:
        tokenizer = own_tokenizer(manifest, str(device))
    except (UserError, OSError) as error:
        return f"no sample grid: {error}"
    height, width = manifest.grid
    classes = network.config.classes
    # The same classes in the same order every time, so that grids can be compared.
    labels = torch.arange(count, device=device) % classes if classes else None
    # Few network calls: the grid should not take noticeable time from training. One generator per image keeps image k
    # the same for any count.
    tokens = sample_signal(
        network,
        count,
        codebook_size=network.config.codebook_size,
        labels=labels,
        calls=min(16, height * width),
        height=height,
        width=width,
        generator=[torch.Generator().manual_seed(seed * 1000 + k) for k in range(count)],
        device=device,
    )
    # The caller may have autocast on; decoding is float32 everywhere else.
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        images = tokenizer.decode(tokens.unflatten(1, (height, width)))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(image_grid(to_uint8(images.float().cpu()), columns=4), path)
    return ""
