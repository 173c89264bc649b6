"""The record that identifies a run; it is stored in checkpoints and compared when the run is resumed.

A record is a flat table of entries: the config with dots in its keys, and what identifies the data. Entries
must not change when a run is resumed, unless they are listed as free. So a new entry is compared by default.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ggm_image.data.sources.image_files import ImageFiles
from ggm_image.errors import UserError
from ggm_image.training.config import GeneratorConfig
from ggm_image.training.dataset import TokenSet
from ggm_image.training.vqgan.config import TokenizerTrainConfig
from ggm_image.validation import build, renamed_fields

FREE_TO_CHANGE = frozenset(
    f"train.{name}"
    for name in (
        # how long, and how often something is measured or saved
        "steps", "max_minutes", "log_every", "logger", "validate_every", "validate_images", "sample_every",
        "checkpoint_minutes", "weights_dtype",
        # how it is computed
        "accumulate", "activation_checkpointing", "strategy", "precision", "compile",
        # what a run that diverged or slowed down is resumed with
        "learning_rate", "schedule", "final_share", "decay_fraction", "warmup_steps", "clip",
        # of no effect after the first step
        "start_from_codes",
    )
) | {"start", "tokenizer.source", "format_version", "val.sha256"}  # fmt: skip
"""Entries of a generator's run that may differ when it is resumed, besides ``presets``."""

TOKENIZER_FREE_TO_CHANGE = frozenset(
    f"train.{name}"
    for name in (
        "steps", "max_minutes", "log_every", "logger", "sample_every", "checkpoint_minutes", "weights_dtype",
        "precision", "compile", "learning_rate", "schedule", "final_share", "decay_fraction", "warmup_steps",
        "restart_every", "restart_until",
    )
) | {"start", "name", "licence"} | frozenset(
    f"loss.{name}"
    for name in (
        "l1", "l2", "commitment", "perceptual", "perceptual_weights", "adversarial", "matching", "adversarial_start",
        "discriminator_rate",
    )
)  # fmt: skip
"""The same of a tokenizer's run. Its losses are often changed from one stage to the next, so they are only reported."""

ADDED_LATER = {"train.optimizer": "adamw", "train.schedule": "cosine", "train.decay_fraction": 0.25}
"""Entries that records of earlier versions lack, as those versions trained."""

SAMPLED_FILES = 256
"""Files whose bytes identify a set of images, evenly spread over it; the names of all are hashed."""


def generator_record(
    config: GeneratorConfig, *, class_names: Sequence[str], training: TokenSet, val_set: TokenSet, method: str
) -> dict[str, Any]:
    """The record of a run of `train`, whose config `dataset.fit_to_cache` has completed."""
    return config_record(asdict(config)) | {
        "method": method,
        "data.class_names": list(class_names),
        "data.rows": len(training),
        "data.sha256": training.sha256(),
        "val.sha256": val_set.sha256(),
    }


def generator_record_of(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The record in a checkpoint; of an earlier version's checkpoint, what its config says."""
    recorded = checkpoint.get("record")
    if not recorded:
        return config_record(asdict(build(GeneratorConfig, checkpoint["config"])))
    names = renamed_fields(GeneratorConfig)
    return {names.get(entry, entry): value for entry, value in recorded.items()}


def config_record(config: Mapping[str, Any]) -> dict[str, Any]:
    """A generator's config as a flat table, without its paths: data sets are compared by their content."""
    flat = _flat({name: value for name, value in config.items() if name not in ("data", "presets")})
    separate = bool(config["data"]["val"])
    flat["data.val"] = "a cache of its own" if separate else "part of the training cache"
    if not separate:
        flat["data.holdout"] = config["data"]["holdout"]
    return flat


def tokenizer_record(config: TokenizerTrainConfig, source: ImageFiles) -> dict[str, Any]:
    """The record of a run of `train-tokenizer`, whose images are known by their names and the bytes of some."""
    names, files = hashlib.sha256(), hashlib.sha256()
    for name in source.names:
        names.update(name.encode("utf-8", "surrogateescape") + b"\0")
    count = len(source)
    for k in sorted({k * count // SAMPLED_FILES for k in range(SAMPLED_FILES)}) if count else ():
        files.update(hashlib.sha256(source.read(k)).digest())
    found = {"images": count, "names_sha256": names.hexdigest(), "files_sha256": files.hexdigest()}
    return _flat(asdict(config)) | {f"data.{name}": value for name, value in found.items()}


def check_resumed(
    before: Mapping[str, Any], now: Mapping[str, Any], free: Iterable[str], say: Callable[[str], None], fix: str
) -> None:
    """Compare the record of a checkpoint with that of the run that resumes it.

    Args:
        before: of the checkpoint; entries that an earlier version did not store are reported, and not compared.
        free: entries that may differ; these differences are reported in one line.
        fix: what to do about an entry that must not differ.
    """
    before, allowed, changed = ADDED_LATER | dict(before), set(free), []
    for entry, value in now.items():
        if entry not in before or _plain_value(before[entry]) == _plain_value(value):
            continue
        was, found = _shown(before[entry], value)
        if entry not in allowed:
            raise UserError(
                f"{entry} must be that of the run that is resumed", f"{found}, the checkpoint has {was}", fix
            )
        changed.append(f"{entry} {was} -> {found}")
    missing = [entry for entry in now if entry not in before and entry not in allowed]
    if missing:
        say(f"resume: the checkpoint is of an earlier version and does not record {', '.join(missing)}: not compared")
    if changed:
        say(f"resume: changed since the checkpoint: {', '.join(changed)}")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _plain_value(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _shown(before: Any, now: Any) -> tuple[str, str]:
    """Two values that differ, short: of long lists their lengths and the first entry that differs."""
    if not (isinstance(before, list | tuple) and isinstance(now, list | tuple)) or max(len(before), len(now)) <= 4:
        return _short(before), _short(now)
    place = next((k for k, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), min(len(before), len(now)))
    return tuple(  # type: ignore[return-value]
        f"{len(side)} entries with {_short(side[place]) if place < len(side) else 'nothing'} at place {place}"
        for side in (before, now)
    )


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 64 else f"{text[:61]}..."
