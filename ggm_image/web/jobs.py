"""Work for the page: one job at a time per device, with progress, and cancelled by its session."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

Report = Callable[..., None]
"""Called by a job as report(done, total, preview=None, note="")."""


class Cancelled(Exception):
    """The job was cancelled."""


@dataclass(frozen=True)
class Step:
    """How far a job is.

    Attributes:
        seconds_left: None while nothing is done.
        preview: what to show, or None.
        note: what to say beside the progress.
    """

    done: int
    total: int
    seconds_left: float | None
    preview: Any = None
    note: str = ""


@dataclass(frozen=True)
class Finished:
    """The result of a job."""

    result: Any


class Jobs:
    """Runs jobs one after the other; a job belongs to a key, and a new one of the same key cancels the old one."""

    def __init__(self) -> None:
        self._device = threading.Lock()
        self._lock = threading.Lock()
        self._cancel: dict[str, threading.Event] = {}

    def cancel(self, key: str) -> bool:
        """Cancel the job of a key at its next report; False where there is none."""
        with self._lock:
            event = self._cancel.pop(key, None)
        if event is not None:
            event.set()
        return event is not None

    def run(self, key: str, work: Callable[[Report], Any]) -> Iterator[Step | Finished]:
        """Run a job in a thread of its own.

        Args:
            work: given a report function, which raises `Cancelled` in it.

        Yields:
            The latest step whenever there is a new one, and at the end the result.

        Raises:
            Cancelled: it was.
            Exception: what ``work`` raises.
        """
        self.cancel(key)
        cancelled, updates = threading.Event(), queue.SimpleQueue[Step | Finished | BaseException]()
        with self._lock:
            self._cancel[key] = cancelled
        thread = threading.Thread(target=self._work, args=(work, cancelled, updates), daemon=True)
        thread.start()
        try:
            while True:
                update = updates.get()
                preview = None
                while isinstance(update, Step) and not updates.empty():
                    preview = preview if update.preview is None else update.preview
                    update = updates.get()
                if isinstance(update, BaseException):
                    raise update
                if isinstance(update, Step) and update.preview is None and preview is not None:
                    update = replace(update, preview=preview)
                yield update
                if isinstance(update, Finished):
                    return
        finally:  # also runs if the next step is never requested, because the browser's tab was closed
            cancelled.set()
            with self._lock:
                if self._cancel.get(key) is cancelled:
                    del self._cancel[key]

    def _work(
        self,
        work: Callable[[Report], Any],
        cancelled: threading.Event,
        updates: "queue.SimpleQueue[Step | Finished | BaseException]",
    ) -> None:
        try:
            with self._device:
                start = time.monotonic()

                def report(done: int, total: int, preview: Any = None, note: str = "") -> None:
                    if cancelled.is_set():
                        raise Cancelled
                    left = (time.monotonic() - start) * (total - done) / done if done else None
                    updates.put(Step(done, total, left, preview, note))

                if cancelled.is_set():
                    raise Cancelled
                updates.put(Finished(work(report)))
        except BaseException as error:
            updates.put(error)
