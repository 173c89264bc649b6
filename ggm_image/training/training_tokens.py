"""What a run trains on: tokens of a cache that fits the config, and held-out ones."""

from pathlib import Path

import torch

from ggm_image.data.token_cache import Manifest, TokenCache
from ggm_image.errors import UserError
from ggm_image.training.config import GeneratorConfig
from ggm_image.training.evaluation import TokenSet


def fit_to_cache(config: GeneratorConfig, manifest: Manifest, where: Path) -> None:
    """Check that a token cache is what the config asks for; fill in what the config leaves open.

    Raises:
        UserError: another tokenizer, codebook, grid, or number of classes.
    """
    for name, found in (("name", manifest.tokenizer_name), ("sha256", manifest.tokenizer_sha256)):
        wanted = getattr(config.tokenizer, name)
        if wanted and wanted != found:
            raise UserError(
                f"{where} must hold tokens of the tokenizer {config.tokenizer.name or wanted}",
                f"{name} {found}, the config says {wanted}",
                "encode the pictures with that tokenizer, or change tokenizer in the config",
            )
        setattr(config.tokenizer, name, found)
    source = Path(manifest.tokenizer_source)
    if manifest.tokenizer_source and source.exists():
        config.tokenizer.source = str(source.resolve())
    network = config.network
    facts: list[tuple[str, object, object]] = [
        ("codebook_size", network.codebook_size, manifest.codebook_size),
        ("grid", tuple(network.grid), tuple(manifest.grid)),
        ("classes", network.classes, len(manifest.class_names)),
    ]
    for name, ours, theirs in facts:
        if ours != theirs:
            value = str(list(theirs) if isinstance(theirs, tuple) else theirs).replace(" ", "")
            raise UserError(
                f"network.{name} must be that of {where}",
                f"{ours} against {theirs}",
                f"set network.{name}={value}",
            )


def load_tokens(config: GeneratorConfig, cache: TokenCache) -> tuple[TokenSet, TokenSet]:
    """Training and held-out tokens, in memory.

    Raises:
        UserError: too few pictures, or a held-out cache of another tokenizer.
    """
    whole = _token_set(cache, config.network.classes)
    shuffle, limit = torch.Generator().manual_seed(config.train.seed), config.train.validate_pictures
    if config.data.val:
        other = TokenCache.open(config.data.val)
        fit_to_cache(config, other.manifest, Path(config.data.val))
        val = _token_set(other, config.network.classes)
        return whole, val.subset(torch.randperm(len(val), generator=shuffle)[:limit].sort().values)
    copies = 2 if cache.manifest.preprocessing.get("flip") else 1  # originals, then mirrored copies
    item = torch.from_numpy(cache.manifest.item_of_row())
    pictures = cache.manifest.items // copies
    held = torch.zeros(pictures, dtype=torch.bool)
    held[torch.randperm(pictures, generator=shuffle)[: min(config.data.holdout, pictures // 10)]] = True
    held_rows = held[item % pictures]  # a picture and its mirrored copy are kept apart together
    if bool(held_rows.all()):
        raise UserError("token cache must hold pictures", cache.folder, "encode at least one")
    return whole.subset((~held_rows).nonzero()[:, 0]), whole.subset(held_rows.nonzero()[:limit, 0])


def _token_set(cache: TokenCache, classes: int) -> TokenSet:
    cache.verify()
    tokens, labels = cache.load()
    if len(labels) and int(labels.max()) >= classes:
        raise UserError(f"labels must lie in [0, {classes})", f"max {int(labels.max())}", "encode the pictures again")
    return TokenSet(tokens.flatten(1), labels.masked_fill(labels < 0, classes))
