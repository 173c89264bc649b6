"""Load the training and validation tokens of a run, and check that their caches fit the config.

Labels are numbers within one cache. Between two caches they are matched by the names of the classes.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from ggm_image.data.token_cache.manifest import Manifest
from ggm_image.data.token_cache.reader import TokenCache
from ggm_image.errors import UserError
from ggm_image.training.config import GeneratorConfig, complete_network


def fit_to_cache(config: GeneratorConfig, manifest: Manifest, where: Path) -> None:
    """Check that a token cache is what the config asks for; fill in what the config leaves open."""
    _check_tokenizer(config, manifest, where)
    config.tokenizer.name, config.tokenizer.sha256 = manifest.tokenizer_name, manifest.tokenizer_sha256
    source = Path(manifest.tokenizer_source)
    if manifest.tokenizer_source and source.exists():
        config.tokenizer.source = str(source.resolve())
    _check_sizes(config, manifest, where, ("codebook_size", "grid", "classes"))
    config.network = complete_network(
        config.network, codebook_size=manifest.codebook_size, classes=len(manifest.class_names), grid=manifest.grid
    )


def _check_tokenizer(config: GeneratorConfig, manifest: Manifest, where: Path) -> None:
    for name, found in (("name", manifest.tokenizer_name), ("sha256", manifest.tokenizer_sha256)):
        wanted = getattr(config.tokenizer, name)
        if wanted and wanted != found:
            raise UserError(
                f"{where} must hold tokens of the tokenizer {config.tokenizer.name or wanted}",
                f"{name} {found}, the config says {wanted}",
                "encode the images with that tokenizer, or change tokenizer in the config",
            )


def _check_sizes(config: GeneratorConfig, manifest: Manifest, where: Path, names: Sequence[str]) -> None:
    found = {"codebook_size": manifest.codebook_size, "grid": list(manifest.grid), "classes": len(manifest.class_names)}
    for name in names:
        ours, theirs = getattr(config.network, name), found[name]
        if ours is not None and (list(ours) if name == "grid" else ours) != theirs:
            raise UserError(
                f"network.{name} must be that of the token cache {where}",
                f"{ours} in the config, {theirs} in the cache",
                f"set network.{name}={str(theirs).replace(' ', '')}, or null to take it from the cache",
            )


@dataclass(frozen=True)
class TokenSet:
    """Tokens and classes in memory.

    Attributes:
        tokens: (n, l) codes, int32.
        labels: (n,) classes, int64; C, the null class, where there are none.
    """

    tokens: Int[Tensor, "n l"]
    labels: Int[Tensor, " n"]

    def rows(self, indices: Int[Tensor, " b"]) -> tuple[Int[Tensor, "b l"], Int[Tensor, " b"]]:
        return self.tokens[indices].long(), self.labels[indices]

    def to(self, device: torch.device) -> "TokenSet":
        return TokenSet(self.tokens.to(device), self.labels.to(device))

    @property
    def size(self) -> int:
        """Bytes."""
        return self.tokens.nbytes + self.labels.nbytes

    def subset(self, indices: Int[Tensor, " m"]) -> "TokenSet":
        return TokenSet(self.tokens[indices], self.labels[indices])

    def sha256(self) -> str:
        """Hash of all tokens and labels in order; shards and their sizes play no part."""
        digest = hashlib.sha256()
        for values in (self.tokens.int(), self.labels.long()):
            digest.update(f"{tuple(values.shape)}".encode())
            digest.update(values.contiguous().numpy().data)
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.labels)


def load_tokens(
    config: GeneratorConfig, cache: TokenCache, say: Callable[[str], None] = lambda line: None
) -> tuple[TokenSet, TokenSet]:
    """Training and validation tokens, in memory; all labels are those of the training cache.

    Args:
        say: receives a line where classes cannot be matched by name.
    """
    names = cache.manifest.class_names
    whole = _token_set(cache, names, names, say)
    shuffle, limit = torch.Generator().manual_seed(config.train.seed), config.train.validate_images
    if config.data.val:
        where, other = Path(config.data.val), TokenCache.open(config.data.val)
        _check_tokenizer(config, other.manifest, where)
        _check_sizes(config, other.manifest, where, ("codebook_size", "grid"))
        val = _token_set(other, other.manifest.class_names, names, say)
        return whole, val.subset(torch.randperm(len(val), generator=shuffle)[:limit].sort().values)
    images = cache.manifest.images
    held = torch.zeros(images, dtype=torch.bool)
    held[torch.randperm(images, generator=shuffle)[: min(config.data.holdout, images // 10)]] = True
    held_rows = held[torch.from_numpy(cache.manifest.image_of_row())]  # all copies of an image are kept apart together
    if bool(held_rows.all()):
        raise UserError("token cache must hold images", cache.folder, "encode at least one")
    return whole.subset((~held_rows).nonzero()[:, 0]), whole.subset(held_rows.nonzero()[:limit, 0])


def _token_set(cache: TokenCache, names: Sequence[str], wanted: Sequence[str], say: Callable[[str], None]) -> TokenSet:
    cache.verify()
    tokens, labels = cache.load()
    if len(labels) and int(labels.max()) >= len(names):
        raise UserError(f"labels must lie in [0, {len(names)})", f"max {int(labels.max())}", "encode the images again")
    return TokenSet(tokens.flatten(1), labels_by_name(labels, names, wanted, str(cache.folder), say))


def labels_by_name(
    labels: Int[Tensor, " n"], names: Sequence[str], wanted: Sequence[str], where: str, say: Callable[[str], None]
) -> Int[Tensor, " n"]:
    """Labels of one cache as those of another.

    A name of either that is in the other is matched, in any order. Names that no image has do not matter. Where one of
    the two caches has no names, only the numbers 0, 1, ..., labels are matched by number, which is reported.

    Args:
        labels: (n,) in [0, len(names)), or -1 for an image without a class.
        where: the cache of ``labels``, for messages.
        say: receives a line where names could not be used.

    Returns:
        (n,) labels in [0, len(wanted)); len(wanted), the null class, for an image without a class.
    """
    # Only classes that occur are matched: an empty class folder must not make the run fail.
    null, used = len(wanted), sorted(set(labels[labels >= 0].tolist()))
    if used and not wanted:
        say(f"{where}: its classes are ignored, the training cache has none")
        return torch.full_like(labels, null)
    if len(labels) and wanted and not used and list(names) != list(wanted):
        say(f"{where}: its images have no classes, and are measured without one")
    # If just one side has names, no name can match, so the order of the classes has to do.
    place = {name: k for k, name in enumerate(wanted)}
    if list(names) != list(wanted) and (_are_numbers(names) != _are_numbers(wanted)):
        if used:
            say(
                f"{where}: classes are matched by number, as {'it' if _are_numbers(names) else 'training'} has no names"
            )
        place = {name: k for k, name in enumerate(names) if k < len(wanted)}
    unknown = [names[k] for k in used if names[k] not in place]
    if unknown:
        shown = ", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise UserError(
            f"{where} must hold images of the training cache's classes only",
            f"it also has {shown}",
            f"remove these, or encode both sets with the same class folders ({', '.join(wanted[:5])}"
            + (", ...)" if len(wanted) > 5 else ")"),
        )
    # The extra last entry is for images without a class.
    table = torch.tensor([*(place.get(name, null) for name in names), null], dtype=torch.int64)
    return table[labels.masked_fill(labels < 0, len(names))]


def _are_numbers(names: Sequence[str]) -> bool:
    """Whether classes have no names: label k is called "k"."""
    return list(names) == [str(k) for k in range(len(names))]
