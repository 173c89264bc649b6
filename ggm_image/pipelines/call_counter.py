"""Progress of a job in network calls, counted from the sampler's callback."""

from collections.abc import Callable

from torch import Tensor

OnProgress = Callable[[int, int], object]
"""Called as on_progress(calls done, calls in total). An exception that it raises ends the job."""


class CallCounter:
    """A sampler's callback that counts network calls over all batches of a job.

    The sampler reports each batch before its first call, at ``t`` = calls left, and after every call.

    Args:
        on_progress: told the count, first with 0 and at the end with ``total``.
    """

    def __init__(self, on_progress: OnProgress, total: int) -> None:
        self.on_progress, self.total, self.done = on_progress, total, 0
        self._started = False

    def __call__(self, t: int, tokens: Tensor) -> None:
        """One step of a batch; a batch ends with ``t`` = 0."""
        if self._started:
            self.done += 1
            self.on_progress(self.done, self.total)
        elif not self.done:
            self.on_progress(0, self.total)
        self._started = t > 0
