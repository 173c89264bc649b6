"""Warn when downscaling discards most of the pixels of the source images."""

import contextlib
import statistics
from collections.abc import Sequence

from ggm_image.data.sources.image_files import ImageSource
from ggm_image.errors import UserError
from ggm_image.image.io import header_size
from ggm_image.runtime.streams import say
from ggm_image.tokenizers import registry
from ggm_image.tokenizers.base import Tokenizer
from ggm_image.tokenizers.spec import TokenizerSpec

MEASURED = 64  # images of a folder whose sizes are looked at before it is encoded
MOST_CELLS = 32  # tokens along a side of what is proposed instead


def some_sizes(source: ImageSource) -> list[tuple[int, int]]:
    """Width and height of a few images, spread over the source."""
    count = min(MEASURED, len(source))
    sizes = []
    for k in range(count):
        with contextlib.suppress(UserError):
            sizes.append(header_size(source.content(k * len(source) // count)))
    return [size for size in sizes if size is not None]


def say_reduction(sizes: Sequence[tuple[int, int]], tokenizer: Tokenizer, size: int) -> None:
    """Say on stderr that images lose most of their pixels, and what would keep more."""
    if not sizes:
        return
    width, height = (round(statistics.median(side)) for side in zip(*sizes, strict=True))
    short = min(width, height)
    if 2 * short < 3 * size:
        return
    cell = tokenizer.downscale
    fixes = []
    if (larger := min(short, MOST_CELLS * cell) // cell * cell) > size:
        fixes.append(f"--image-size {larger} ({larger // cell} x {larger // cell} tokens)")
    if spec := _tokenizer_for(short, tokenizer):
        fixes.append(f"--tokenizer {spec.name} ({spec.image_size} pixels, {spec.grid} x {spec.grid} tokens)")
    fix = f"; to keep more: {' or '.join(fixes)}" if fixes else ""
    say(f"note: images of {width} x {height} pixels (median) are reduced to {size} x {size}{fix}")


def _tokenizer_for(side: int, tokenizer: Tokenizer) -> TokenizerSpec | None:
    """A known tokenizer of images up to ``side`` pixels, more than the given one's: for photos of anything first."""
    fitting = [s for s in registry.tokenizer_specs() if tokenizer.image_size < s.image_size <= side]

    def preference(spec: TokenizerSpec) -> tuple[bool, int, int, bool, str]:
        is_general = spec.data in ("ImageNet", "OpenImages")
        return not is_general, spec.grid, spec.codebook_size, not spec.reported, spec.name

    return min(fitting, key=preference, default=None)
