"""The one error that a user can cause and can fix."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

LONGEST = 600
"""Characters of one part of an error's line; what lies in the middle of a longer one is left out."""


def printable(text: object, longest: int = LONGEST) -> str:
    """Text on one line and without control characters, which could write over a terminal; cut where it is very long."""
    line = " ".join(str(text).split())
    if len(line) > longest:
        line = f"{line[: longest - 80]} ... {line[-60:]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in line)


class UserError(ValueError):
    """What is wrong, what was found, and how to fix it, in one line.

    The command line prints it as ``error: <what> (<got>); <how to fix>`` and exits with code 2.

    Args:
        what: the rule that was broken, e.g. ``tokens must lie in [0, 1024)``.
        got: what was found instead.
        fix: what the user can do about it.
    """

    def __init__(self, what: str, got: object, fix: str) -> None:
        super().__init__(f"{printable(what)} ({printable(got)}); {printable(fix)}")
        self.what, self.got, self.fix = what, got, fix

    def __reduce__(self) -> tuple[type["UserError"], tuple[str, str, str]]:
        """Pickled from its parts, as a worker process hands it on; the default, from the line alone, fails."""
        return type(self), (self.what, printable(self.got), self.fix)


def suggest(name: object, known: Iterable[str], otherwise: str, *, n: int = 1, cutoff: float = 0.6) -> str:
    """How to fix an unknown name: "did you mean cat or car?", or ``otherwise`` where nothing known is like it.

    Args:
        otherwise: the fix where none is near.
        n, cutoff: how many at most, and how near, as of `difflib.get_close_matches`.
    """
    near = difflib.get_close_matches(str(name), list(known), n=n, cutoff=cutoff)
    return f"did you mean {' or '.join(near)}?" if near else otherwise


@contextmanager
def explained(what: str, fix: str, *, got: object = "") -> Iterator[None]:
    """Turn what data from outside breaks into a `UserError`, which says the error's kind and words, after ``got``."""
    try:
        yield
    except UserError:
        raise
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        words = f"{type(error).__name__}: {error}"
        raise UserError(what, f"{got}: {words}" if got else words, fix) from error


class PeerFailure(Exception):
    """Another process of the same run has failed or was stopped, and says why: this one ends with its code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"another process has ended the run with code {code}")
        self.code = code
