"""Use stdout and stderr safely where they may be missing or closed: services, ``pythonw``, ``2>&-``."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from ggm_image.errors import LONGEST, printable


def say(line: str, *, every_process: bool = False) -> None:
    """Print one line to stderr, if there is one; of the processes of torchrun, which share it, only the first prints.

    Args:
        line: what to print; control characters are escaped.
        every_process: print it in each process: an error of one process alone would otherwise be silent.

    Work never fails because a message cannot be printed.
    """
    if _usable(sys.stderr) and (every_process or os.environ.get("RANK", "0") == "0"):
        with contextlib.suppress(OSError, ValueError):
            print(printable(line, longest=4 * LONGEST), file=sys.stderr, flush=True)


def is_terminal(stream: Any) -> bool:
    """Whether a stream is there, open and a terminal."""
    try:
        return _usable(stream) and bool(stream.isatty())
    except (OSError, ValueError, AttributeError):
        return False


def _usable(stream: Any) -> bool:
    return stream is not None and not getattr(stream, "closed", False)


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Let stdout and stderr be the null device where they are closed or None, until the end of the block.

    The descriptors 0, 1 and 2 stay taken: otherwise the next file opened would get the number of stderr, and a message
    of a C library would be written into it.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                # the lowest free number, which is this one
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    with contextlib.ExitStack() as stack:
        for name in ("stdout", "stderr"):
            before = getattr(sys, name)
            if not _usable(before):
                null = stack.enter_context(open(os.devnull, "w", encoding="utf-8", errors="backslashreplace"))
                setattr(sys, name, null)
                stack.callback(setattr, sys, name, before)
        yield
