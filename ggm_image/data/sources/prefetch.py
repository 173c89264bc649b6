"""Decode images in threads while the next ones are being read."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from torch import Tensor

from ggm_image.data.copies import ORIGINAL, Copy
from ggm_image.data.sources.image_files import ImageSource
from ggm_image.errors import UserError
from ggm_image.image.preprocess import preprocess

DecodedImage = Tensor | UserError
T = TypeVar("T")
R = TypeVar("R")


def default_workers() -> int:
    """Threads that decode images: one a core that this process may use, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(16, max(2, cores))


def decoded(
    entries: Iterable[T], decode: Callable[[T], R], batch_size: int, *, workers: int, ahead: int
) -> Iterator[tuple[list[T], list[R]]]:
    """Consecutive groups of ``entries`` with their images, in order.

    Never more than ``ahead + 1`` groups are held, however many entries there are.

    Args:
        entries: read by one thread, one after the other.
        decode: called for each by several threads.
        batch_size: entries a group; the last may have fewer.
        ahead: groups read and decoded in advance. 0 where the tokenizer runs on the same cores: decoding would take
            them from the threads of a product, and all of these wait for the slowest.
    """
    # Small chunks keep all threads busy inside one batch.
    chunk = max(1, min(64, -(-batch_size // workers)))
    coming = iter(entries)

    def read() -> tuple[list[T], list[Future[list[R]]]]:
        group = list(islice(coming, batch_size))
        parts = [group[k : k + chunk] for k in range(0, len(group), chunk)]
        return group, [pool.submit(lambda part: [decode(entry) for entry in part], part) for part in parts]

    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    reader = ThreadPoolExecutor(1, thread_name_prefix="read")
    try:
        waiting = deque(reader.submit(read) for _ in range(ahead + 1))
        while True:
            group, futures = waiting.popleft().result()
            if not group:
                return
            images = [image for future in futures for image in future.result()]
            if ahead:
                waiting.append(reader.submit(read))
            yield group, images
            if not ahead:
                waiting.append(reader.submit(read))
    finally:
        reader.shutdown(wait=True, cancel_futures=True)
        pool.shutdown(wait=True, cancel_futures=True)


class Prefetch:
    """Preprocessed images of a source, decoded by threads some batches ahead.

    Args:
        copies: item ``c * N + i`` of N images is copy ``c`` of image ``i``.
    """

    def __init__(
        self,
        source: ImageSource,
        image_size: int,
        *,
        workers: int,
        copies: Sequence[Copy] = (ORIGINAL,),
        ahead: int = 2,
    ) -> None:
        self.source, self.image_size, self.copies = source, image_size, copies
        self.workers, self.ahead = workers, ahead

    def __len__(self) -> int:
        return len(self.source) * len(self.copies)

    def image(self, item: int) -> DecodedImage:
        """One item, or the error that says why it cannot be read."""
        copy, index = divmod(item, len(self.source))
        try:
            image = preprocess(self.source[index], self.image_size)
        except UserError as error:
            return error
        return self.copies[copy].apply(image)

    def batches(self, items: Sequence[int], batch_size: int) -> Iterator[tuple[list[int], list[DecodedImage]]]:
        """Consecutive groups of ``items`` with their images, in order."""
        return decoded(items, self.image, batch_size, workers=self.workers, ahead=self.ahead)
