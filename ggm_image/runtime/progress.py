"""Progress bars on a terminal."""

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from ggm_image.runtime.streams import is_terminal

T = TypeVar("T")


def _shows_bars() -> bool:
    """Bars are for a terminal; of torchrun's processes, which share one, the first alone shows its own."""
    return is_terminal(sys.stderr) and os.environ.get("RANK", "0") == "0"


def progress(items: Iterable[T], *, total: int | None, unit: str, label: str) -> Iterable[T]:
    """``items`` with a bar (rate and ETA) on a terminal, and untouched when stderr is piped."""
    if not _shows_bars():
        return items
    from tqdm import tqdm

    return tqdm(items, total=total, unit=unit, desc=label, dynamic_ncols=True, leave=False)


@contextmanager
def progress_bar(*, total: int | None, unit: str, label: str, scaled: bool = False) -> Iterator[Callable[[int], Any]]:
    """As `progress`, for work that comes in batches: yields a function to call with the number of items done.

    Args:
        total: how many there are; None where that is not known.
    """
    if not _shows_bars():
        yield lambda done: None
        return
    from tqdm import tqdm

    with tqdm(total=total, unit=unit, unit_scale=scaled, desc=label, dynamic_ncols=True, leave=False) as bar:
        yield bar.update
