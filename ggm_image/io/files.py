"""Atomic writes, locks and hashes of files."""

import errno
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ggm_image.errors import UserError


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary sibling of ``path``: renamed to it on success, removed on any error.

    The temporary name keeps the suffix, because image writers choose their format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask, or the folder's default ACL, has it
        temporary.unlink()
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        # safetensors 0.8 writes files that only their owner can read
        temporary.chmod(stat.S_IMODE(mode))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary sibling folder of ``path``: renamed to it on success, removed on any error.

    Args:
        path: the folder to be made; it must not exist yet, or be empty.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UserError("output folder must be new or empty", path, "choose another one or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def disk_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Raise the OSError behind an error of torch or safetensors, which hide what the disk reported."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        beneath, words = error.__context__, re.search(r"\(os error (\d+)\)", str(error))
        if isinstance(beneath, OSError) and beneath.errno:
            code = beneath.errno
        elif words:
            code = int(words[1])
        else:
            raise
        raise OSError(code, os.strerror(code), str(path)) from error


_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp(\.[^.]+)?")


def is_temporary(name: str) -> bool:
    """Whether a file of this name is one of ours that was not finished."""
    return bool(_TEMPORARY.fullmatch(name))


def remove_temporaries(*folders: str | os.PathLike[str]) -> None:
    """Remove unfinished files of killed processes directly in ``folders``.

    No other may write there now, but by `write_together`. Folders that do not exist are passed over.
    """
    for folder in map(Path, folders):
        for path in folder.iterdir() if folder.is_dir() else ():
            if not is_temporary(path.name):
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextmanager
def held(path: str | os.PathLike[str], *, wait: bool = False) -> Iterator[None]:
    """Take an exclusive lock on a folder or file, so that two processes do not overwrite each other's files.

    The system releases it however this process ends. Where there are no such locks (Windows, most network file
    systems), nothing is kept.

    Args:
        path: the folder, or a file that exists.
        wait: until another process releases it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            fix = "wait for its end, or choose another folder"
            raise UserError("another process is at work in the folder", path, fix) from None
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)


def write_together(path: str | os.PathLike[str], write: Callable[[Path], Any]) -> None:
    """As `atomic_path`, where other processes may write the same file at the same time, and remove leftovers.

    Args:
        path: the file. All processes write the same bytes, so it does not matter whose are left.
        write: writes to the temporary path that it is given.
    """
    for attempt in range(3):
        try:
            with atomic_path(path) as temporary:
                write(temporary)
            return
        except FileNotFoundError:
            # Somebody has taken our temporary file for a killed process's.
            if Path(path).is_file():
                return
            if attempt == 2:
                raise


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` atomically, in UTF-8; of names that are no UTF-8, JSON reads the bytes back that Python has."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` atomically as indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def create_json(path: str | os.PathLike[str], value: Any) -> bool:
    """As `write_json`, but never over a file: of several processes one is first.

    Returns:
        Whether this one was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}")
    try:
        with open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links: nearly as good
            if path.exists():
                return False
            os.replace(temporary, path)
        return True
    finally:
        temporary.unlink(missing_ok=True)


def read_json_table(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is no such file, or it holds anything else."""
    try:
        found = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def first_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first key whose values differ, lists last, and both values: ``a.b`` for ``b`` in the table ``a``; or None."""
    for key in sorted({**now, **before}, key=lambda key: isinstance(now.get(key), list)):
        was, new = before.get(key), now.get(key)
        if was == new:
            continue
        if isinstance(was, dict) and isinstance(new, dict) and (inner := first_difference(was, new)):
            return f"{key}.{inner[0]}", inner[1], inner[2]
        return key, was, new
    return None


def check_plain(path: str | os.PathLike[str]) -> None:
    """Raise OSError unless ``path`` is a regular file: a pipe is waited for without end, a device can be endless."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "Not a regular file", str(path))


def read_plain(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a regular file; OSError for anything else, see `check_plain`."""
    check_plain(path)
    return Path(path).read_bytes()


def sha256_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
