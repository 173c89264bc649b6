"""The samplers by name. A new one is one module and one entry here; nothing in this file imports torch.

`Settings.order` and the command line's ``--order`` take the names of the entries. The module of an entry has

    sample_by_settings(denoiser, settings, batch, *, height, width, codebook_size, labels, known, noise, generator,
                       callback, device) -> tokens (B, L)

with the arguments of `ggm_image.sampler.sample`, and takes from ``settings`` what it uses. It usually makes a
`ggm_image.sampler.base.Plan` and leaves the rest to `run_by_pattern`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ggm_image.errors import UserError, suggest


@dataclass(frozen=True)
class SamplerEntry:
    """A sampler that `Settings.order` can name.

    Attributes:
        name: of the sampler.
        module: import path of the module with ``sample_by_settings``.
        summary: half a sentence for ``--help``.
        unused: entries of `Settings` that have no effect on it.
    """

    name: str
    module: str
    summary: str
    unused: frozenset[str] = frozenset()

    def load(self) -> Callable[..., Any]:
        """Its ``sample_by_settings``; imports the module."""
        found: Callable[..., Any] = import_module(self.module).sample_by_settings
        return found


SAMPLERS: dict[str, SamplerEntry] = {
    entry.name: entry
    for entry in (
        SamplerEntry(
            name="schedule",
            module="ggm_image.sampler.glauber_chain",
            summary="fixed blocks, known law; one site a call is the paper's chain",
            unused=frozenset({"confidence_noise", "revise_share", "first_order", "first_block"}),
        ),
        SamplerEntry(
            name="signal",
            module="ggm_image.sampler.confidence",
            summary="the most trusted sites first, then the least trusted are resampled",
            unused=frozenset({"curve", "site_order"}),
        ),
    )
}


def register(entry: SamplerEntry) -> None:
    """Add a sampler from outside the package, before settings or commands name it.

    Raises:
        UserError: the name is taken.
    """
    if entry.name in SAMPLERS:
        raise UserError("this sampler exists already", f"got {entry.name!r}", "choose another name")
    SAMPLERS[entry.name] = entry


def find_sampler(name: object) -> SamplerEntry:
    """The entry of a name; UserError with the nearest names, or all, if there is none."""
    if isinstance(name, str) and name in SAMPLERS:
        return SAMPLERS[name]
    fix = suggest(name, SAMPLERS, f"choose one of {', '.join(SAMPLERS)}")
    raise UserError(f"order must be {' or '.join(SAMPLERS)}", f"got {name!r}", fix)
