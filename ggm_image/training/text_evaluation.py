"""Measurements during a run on text: held-out bits per byte, and a few samples."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ggm_image.data.token_cache.manifest import Manifest
from ggm_image.errors import UserError
from ggm_image.io.files import atomic_path
from ggm_image.network import Transformer
from ggm_image.sampler import sample_signal
from ggm_image.tokenizers.registry import load_text_tokenizer
from ggm_image.tokenizers.text import TextTokenizer
from ggm_image.training.dataset import TokenSet

CALLS = 64
"""Network calls of the samples that a run writes."""


@torch.no_grad()
def bits_per_byte(
    network: Transformer,
    val_set: TokenSet,
    *,
    tokenizer: TextTokenizer | None = None,
    seed: int = 0,
    batch_size: int = 16,
) -> float:
    """An upper bound on the held-out bits per byte of the model that fills in a row site by site in a random order.

    By the chain rule and Jensen's inequality, -log p(x) is at most the mean over all orders of the sum of the costs
    -log p0(x_i | sites before it). With k sites of l still masked that is l times the mean cost of a masked site, k
    being uniform in 1..l. Here every batch has one k and one random set of sites; the k of the batches are spread
    evenly over 1..l, so the estimate has no bias and little variance. That gives bits per token; divided by the mean
    number of bytes of a held-out token, bits per byte. A text has other codes than the tokenizer's as well, whose
    probability only adds to its own, so the bound holds for any tokenizer.

    Args:
        tokenizer: of the tokens; a token is a byte where None.
    """
    device, rows_total, sites_total = network.site.weight.device, len(val_set), val_set.tokens.shape[1]
    generator = torch.Generator().manual_seed(seed)
    starts = range(0, rows_total, batch_size)
    offset = float(torch.rand((), generator=generator))
    total = 0.0
    # The batches come in a random order: rows beside each other are of one text.
    order = torch.randperm(rows_total, generator=generator)
    for number, start in enumerate(starts):
        share = (number + offset) / len(starts)
        k = min(sites_total, 1 + int(share * sites_total))
        x_0, labels = val_set.rows(order[start : start + batch_size])
        sites = torch.randperm(sites_total, generator=generator)[:k]
        tokens = x_0.index_fill(1, sites, network.config.codebook_size)
        logits = network(tokens.to(device), torch.ones(x_0.shape, device=device), sites.to(device), labels.to(device))
        with torch.autocast(device.type, enabled=False):
            cost = F.cross_entropy(logits.transpose(1, 2), x_0[:, sites].to(device))
        total += float(cost)
    lengths = 1.0 if tokenizer is None else tokenizer.code_lengths[val_set.tokens.cpu().numpy()].mean()
    return total / len(starts) / math.log(2) / float(lengths)


def text_tokenizer_of(manifest: Manifest) -> TextTokenizer:
    """The tokenizer that made a cache of text."""
    tokenizer = load_text_tokenizer(manifest.tokenizer_source or manifest.tokenizer_name)
    if tokenizer.sha256 != manifest.tokenizer_sha256:
        what = f"{manifest.tokenizer_source} must be the tokenizer that the text was encoded with"
        raise UserError(what, f"it is {tokenizer.sha256[:12]}, not {manifest.tokenizer_sha256[:12]}", "encode it again")
    return tokenizer


def sample_texts(network: Transformer, manifest: Manifest, path: Path, *, seed: int, texts: int = 4) -> str:
    """Sample a few rows and write them into one file, with a line between them.

    Args:
        seed: the same noise every time, so that the samples of a run can be compared.

    Returns:
        Why nothing was sampled, or an empty string: a run does not end for the lack of a tokenizer.
    """
    try:
        tokenizer = text_tokenizer_of(manifest)
    except UserError as error:
        return f"no samples: {error}"
    height, width = manifest.grid
    tokens: Tensor = sample_signal(
        network,
        texts,
        codebook_size=network.config.codebook_size,
        labels=None,
        calls=min(CALLS, height * width),
        height=height,
        width=width,
        generator=[torch.Generator().manual_seed(seed * 1000 + k) for k in range(texts)],
        device=network.site.weight.device,
    )
    rows = tokenizer.decode(tokens.unflatten(1, (height, width)))
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"".join(f"--- {k} ---\n".encode() + row + b"\n" for k, row in enumerate(rows)))
    return ""
