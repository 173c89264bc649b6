"""Stop cleanly on Ctrl-C and SIGTERM, within seconds even during a long step."""

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

from ggm_image.training.logging import to_stderr

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE, SECOND_GRACE = 3.0, 0.5
"""Seconds that a step has to end after the first signal, and everything after the second."""
EXIT_CODE = 130


class Interrupted(KeyboardInterrupt):
    """A signal has come during work that can be left out."""


class GracefulStop:
    """Turns Ctrl-C and SIGTERM into a flag that the loop reads between two steps; a second one ends at once.

    A step that has not ended `GRACE` seconds after the first signal is given up, and the process ends as it would after
    a kill: from the last checkpoint. Python runs a signal's handler between two of its own instructions, and a backward
    pass is one long call of C++; a thread therefore reads the signals from a socket.

    Args:
        silent: whether another process says so.
        give_up: called in that thread before the process ends; returns what is to be said. None: never give up, as the
            processes of one run end together.
    """

    def __init__(
        self, *, silent: bool = False, give_up: Callable[[], str] | None = None, grace: float | None = None
    ) -> None:
        self.wanted, self.silent = False, silent
        self._give_up, self._grace = give_up, GRACE if grace is None else grace
        self._optional, self._saving, self._taken = False, False, False
        self._before: dict[int, Any] = {}
        self._thread: threading.Thread | None = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True
        if not self.silent:
            to_stderr("stopping after this step; repeat to stop at once")
        if self._optional:
            raise Interrupted

    def optional(self, work: Callable[[], object]) -> None:
        """Run optional work: a signal skips it or ends it at once, without an error."""
        alone = self._give_up is not None  # the processes of one run must all do it, or none
        with suppress(Interrupted):
            try:
                self._optional = alone
                if not (alone and self.wanted):
                    work()
            finally:
                self._optional = False

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Work that is not given up after the first signal."""
        self._saving = True
        try:
            yield
        finally:
            self._saving = False

    def taken(self) -> None:
        """The step has ended, and the loop ends cleanly: nothing is given up any more, unless there is a second."""
        self._taken = True

    def _watch(self, reader: socket.socket) -> None:
        signals, deadline = 0, float("inf")
        while True:
            left = deadline - time.monotonic()
            ready = select.select([reader], [], [], None if left == float("inf") else max(0.0, left))[0]
            if ready:
                received = reader.recv(64)
                if not received or 0 in received:
                    return
                for _ in range(sum(byte in SIGNALS for byte in received)):
                    signals += 1
                    deadline = min(deadline, time.monotonic() + (self._grace if signals == 1 else SECOND_GRACE))
            elif signals == 1 and self._taken:
                deadline = float("inf")
            elif signals == 1 and self._saving:
                deadline = time.monotonic() + 0.1
            else:
                with suppress(Exception):
                    assert self._give_up is not None
                    to_stderr(self._give_up())
                os._exit(EXIT_CODE)

    def __enter__(self) -> "GracefulStop":
        for number in SIGNALS:
            try:
                self._before[number] = signal.signal(number, self._handle)
            except ValueError:  # not in the main thread: there Ctrl-C belongs to the main thread
                return self
        if self._give_up is not None:
            reader, self._writer = socket.socketpair()
            self._writer.setblocking(False)
            self._old_wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._watch, args=(reader,), daemon=True)
            self._thread.start()
            self._reader = reader
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._thread is not None:
            signal.set_wakeup_fd(self._old_wakeup)
            self._writer.send(b"\0")
            self._thread.join()
            self._reader.close()
            self._writer.close()


def last_words(step: int, saved_step: int | None) -> str:
    """The message where a step is given up; ``saved_step`` is of the last checkpoint, None without one."""
    if saved_step is None:
        return f"ended within step {step}, which was too long to wait for; there is no checkpoint yet"
    return (
        f"ended within step {step}, which was too long to wait for; "
        f"run the same command with --resume to resume from step {saved_step}"
    )
