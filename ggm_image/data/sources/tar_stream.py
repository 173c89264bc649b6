"""Tar archives read once from front to back: files, the output of commands, and anything that fsspec opens.

tarfile accepts an archive that is truncated between two members, or damaged at a header, as a shorter one. Here an
archive is rejected unless it has its end marker, can be read to its last byte, and the command that printed it exits
with 0. A failed network read is retried: the archive is read again, and members that were already returned are skipped.
"""

import bz2
import gzip
import hashlib
import lzma
import os
import re
import signal
import subprocess
import tarfile
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath
from typing import IO, Any, Protocol, TypeVar
from urllib.parse import urlsplit

from ggm_image.errors import UserError
from ggm_image.io.download import is_offline
from ggm_image.io.files import check_plain

ATTEMPTS = 4  # at each archive that comes over a network or from a command
PAUSE = 1.0  # seconds before the second attempt; twice as long before each later one
TIMEOUT = 60.0  # seconds without an answer or without a byte
CHUNK = 1 << 20
T = TypeVar("T")
MOST_PLACES = 100_000  # that one pattern may mean
BLOCK = tarfile.BLOCKSIZE
_MAGIC: dict[bytes, Any] = {b"\xfd7zXZ\x00": lzma.open, b"\x1f\x8b": gzip.open, b"BZh": bz2.open}
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?$")
_LASTING = (UserError, FileNotFoundError, PermissionError, IsADirectoryError, MemoryError)
"""What another attempt would meet again."""


def unpacker(head: bytes) -> Any:
    """What opens a file that begins so as its content: of gzip, xz or bzip2; None for any other."""
    return next((opener for magic, opener in _MAGIC.items() if head.startswith(magic)), None)


class Broken(Exception):
    """Why an archive could not be read to its end."""


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def is_stream(place: str) -> bool:
    """Whether ``place`` is a command or an address rather than a path."""
    return place.startswith("pipe:") or "://" in place


def expand(pattern: str) -> list[str]:
    """The places that a pattern with braces means, as a shell would write them out: ``{000..127}``, ``{a,b}``."""
    from braceexpand import braceexpand

    try:
        if _how_many(pattern) > MOST_PLACES:
            raise UserError(
                f"a pattern may mean at most {MOST_PLACES:,} archives", pattern, "correct it, or give a folder"
            )
        return list(braceexpand(pattern, escape=False))
    except UserError:
        raise
    except ValueError:  # an unmatched brace
        return [pattern]
    except RecursionError as error:
        raise UserError("a pattern has too many braces in each other", pattern, "correct it") from error


def _how_many(pattern: str) -> int:
    """How many places a pattern means at the most: braceexpand takes memory for a whole range at once."""
    count, depth, start = 1, 0, 0
    for position, character in enumerate(pattern):
        if character == "{":
            start = position + 1 if depth == 0 else start
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                count *= _how_many_in(pattern[start:position])
    return count


def _how_many_in(braces: str) -> int:
    if ends := _RANGE.match(braces):
        return abs(int(ends[2]) - int(ends[1])) // (int(ends[3] or 1) or 1) + 1
    if re.match(r"[A-Za-z]\.\.[A-Za-z](\.\.|$)", braces):
        return 52
    parts, depth = [""], 0
    for character in braces:
        depth += (character == "{") - (character == "}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return sum(map(_how_many, parts))


def members(place: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """The names and contents of an archive's regular files, in the order in which they lie there.

    Args:
        place: a path, an address with ``://`` for fsspec, or ``pipe:`` and a command for the shell. Archives may be
            packed by gzip, xz or bzip2.
    """
    attempts = ATTEMPTS if is_stream(place) else 1
    done, before = 0, hashlib.sha256()
    for attempt in range(attempts):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        passed, now = 0, hashlib.sha256()
        try:
            for name, content in _read(place, wanted):
                now.update(f"{name}\0{len(content)}\n".encode("utf-8", "surrogateescape"))
                passed += 1
                if passed <= done:
                    if passed == done and now.digest() != before.digest():
                        raise UserError("archive has changed while it was read", shown(place), "start again")
                    continue
                done, before = passed, now.copy()
                yield name, content
            if passed < done:
                raise UserError("archive has changed while it was read", shown(place), "start again")
            return
        except _LASTING as error:
            if isinstance(error, UserError | MemoryError):
                raise
            why = error.strerror or str(error) or type(error).__name__
            raise UserError("archive cannot be opened", f"{shown(place)}: {why}", "check the address") from error
        # Each of fsspec's file systems fails with errors of its own.
        except Exception as error:
            if attempt + 1 < attempts:
                continue
            why = f"{error or type(error).__name__}" + (f", {attempts} attempts" if attempts > 1 else "")
            raise UserError("archive is not whole", f"{shown(place)}: {why}", "fetch or pack it again") from error


def safe_members(archive: tarfile.TarFile, where: str) -> Iterator[tuple[PurePosixPath, tarfile.TarInfo]]:
    """The members of an open archive with their names, without ``./``; every reader of archives goes by these.

    Nothing of an archive is kept in memory; PAX and GNU headers are applied to the names.
    """
    while (member := archive.next()) is not None:
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts:
            raise UserError("archive has an unsafe name", f"{where}: {member.name}", "pack it again")
        yield name, member
        archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all


def shown(place: str) -> str:
    """``place`` for messages: an address without passwords and signatures."""
    if place.startswith("pipe:") or "://" not in place:
        return place
    parts = urlsplit(place)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _read(place: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    return member_files(place, wanted, lambda content: content.read())


def member_files(place: str, wanted: Callable[[str], bool], take: Callable[[IO[bytes]], T]) -> Iterator[tuple[str, T]]:
    """As `members`, in one attempt, with what ``take`` makes of each open file.

    The file itself must be read before the next one is asked for.

    Raises:
        Broken: the archive is cut off or damaged; tarfile and the decompressors may raise errors of their own.
        UserError: the archive continues after its end mark, or has an unsafe name.
    """
    with _open(place) as raw:
        whole = _Whole(raw)
        head = whole.read(6)
        whole.put_back(head)
        opener = unpacker(head)
        stream = _Whole(whole if opener is None else opener(whole))
        with tarfile.open(fileobj=stream, mode="r|", bufsize=CHUNK) as archive:  # type: ignore[call-overload]
            for name, member in safe_members(archive, shown(place)):
                if member.isreg() and wanted(str(name)):
                    content = archive.extractfile(member)
                    assert content is not None
                    yield str(name), take(content)
            if stream.since(archive.offset)[:BLOCK] != bytes(BLOCK):
                raise Broken(f"it is cut off or damaged at byte {archive.offset}")
            rest = stream.since(archive.offset)
        while rest:
            if rest.strip(b"\0"):  # one tar after the other in one file: the others must not go missing
                raise UserError("archive continues after its end mark", shown(place), "give its parts one by one")
            rest = stream.read(CHUNK)
        while whole.read(CHUNK):
            pass


class _Whole:
    """A stream whose reads are as long as asked for, except at its end; the last ones are remembered."""

    def __init__(self, raw: _Readable) -> None:
        self.raw, self.position, self._back = raw, 0, b""
        self._last: deque[bytes] = deque(maxlen=2)

    def read(self, size: int = -1) -> bytes:
        parts, missing = [self._back[:size]], size - len(self._back[:size])
        self._back = self._back[size:]
        while missing > 0 and (part := self.raw.read(missing)):
            parts.append(part)
            missing -= len(part)
        data = b"".join(parts)
        self.position += len(data)
        self._last.append(data)
        return data

    def put_back(self, data: bytes) -> None:
        self._back = data + self._back
        self.position -= len(data)
        self._last.clear()

    def since(self, position: int) -> bytes:
        """What has been read from ``position`` on, which lies in the last two reads."""
        seen = b"".join(self._last)
        return seen[position - (self.position - len(seen)) :]


@contextmanager
def _open(place: str) -> Iterator[_Readable]:
    if place.startswith("pipe:"):
        with _command(place.removeprefix("pipe:")) as output:
            yield output
    elif "://" in place:
        with _address(place) as file:
            yield file
    else:
        check_plain(place)
        with open(place, "rb") as file:
            yield file


@contextmanager
def _command(command: str) -> Iterator[IO[bytes]]:
    """What a shell command prints; Broken unless it ends well."""
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
        assert process.stdout is not None
        try:
            try:
                yield process.stdout
            except Exception:
                # A command that fails prints too little: say that rather than what is missing.
                if process.stdout.read(1) or process.wait(TIMEOUT) == 0:
                    raise
            if code := process.wait(TIMEOUT):
                errors.seek(max(0, errors.seek(0, os.SEEK_END) - 500))
                said = errors.read().decode("utf-8", "replace").strip().splitlines()
                raise Broken(f"the command failed with code {code}" + (f", {said[-1]}" if said else ""))
        finally:
            if process.returncode is None:
                # Before the pipe is closed and the shell waited for: what it has started may outlive it.
                if hasattr(os, "killpg"):
                    with suppress(PermissionError):  # macOS, where the shell has just ended
                        os.killpg(process.pid, signal.SIGKILL)
                process.kill()
            process.stdout.close()
            process.wait()


@contextmanager
def _address(url: str) -> Iterator[_Readable]:
    """An address opened by fsspec; those of the web as one stream, without a limit on the whole time."""
    protocol = url.partition("://")[0]
    if is_offline() and protocol not in ("file", "local", "memory"):
        raise UserError("GGM_IMAGE_OFFLINE is set", shown(url), "unset it, or give archives on this machine")
    import fsspec

    options: dict[str, Any] = {}
    try:
        if protocol in ("http", "https"):
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT, sock_read=TIMEOUT)
            options = {"block_size": 0, "client_kwargs": {"timeout": timeout}}
        opened = fsspec.open(url, "rb", compression=None, **options)
    except (ImportError, ValueError) as error:
        raise UserError("fsspec cannot open such an address", f"{shown(url)}: {error}", "see its docs") from error
    with opened as file:
        yield file
