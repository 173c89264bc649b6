"""Download files once into the user's cache: resumable, verified, with mirrors.

| variable | meaning |
| --- | --- |
| ``GGM_IMAGE_CACHE`` | the cache; else ``$XDG_CACHE_HOME/ggm-image``, else ``~/.cache/ggm-image`` |
| ``GGM_IMAGE_OFFLINE`` | anything but empty or 0: the network is never touched |
| ``HF_HUB_OFFLINE`` | 1, on, yes or true: the same |

All downloads of the package go through this module. Libraries that have downloaders of their own (timm, clip,
clean-fid, torch.hub) get a local file from `fetch` instead.

A file under download is called ``NAME.part``. It is resumed only if the server's ETag or date shows that
the file has not changed. It is renamed once its size and SHA-256 have been verified.
"""

import http.client
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ggm_image.errors import UserError
from ggm_image.io.files import held, read_json_table, sha256_file, write_json
from ggm_image.runtime.progress import progress_bar

TIMEOUT = 30.0  # seconds without an answer or without a byte
ATTEMPTS = 3  # at each address: a cut connection is taken up again
CHUNK = 1 << 20


def cache_dir() -> Path:
    """The user's cache; not made here."""
    if named := os.environ.get("GGM_IMAGE_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ggm-image"


def offline_variable() -> str:
    """Name of the environment variable that forbids the network; empty where none does."""
    if os.environ.get("GGM_IMAGE_OFFLINE", "") not in ("", "0"):
        return "GGM_IMAGE_OFFLINE"
    # The values that huggingface_hub takes for true.
    return "HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE") else ""


def is_offline() -> bool:
    """Whether the user has forbidden the network."""
    return bool(offline_variable())


def fetch(
    name: str,
    urls: Sequence[str],
    *,
    folder: str,
    sha256: str = "",
    elsewhere: Sequence[str | os.PathLike[str]] = (),
    or_else: str = "",
) -> Path:
    """The path of a published file, downloaded into the cache at its first use.

    Args:
        folder: of the cache, for example ``features``.
        elsewhere: where other libraries keep the same file. The first copy that is there is used, unless its SHA-256
            is known to be another.
        or_else: what a user can do instead, for the error message.
    """
    path = cache_dir() / folder / name
    for copy in () if path.is_file() else map(Path, elsewhere):
        if copy.is_file() and (not sha256 or sha256_file(copy) == sha256):
            return copy
    download(path, urls, sha256=sha256, or_else=or_else)
    return path


def download(
    path: Path, urls: Sequence[str], *, size: int | None = None, sha256: str = "", label: str = "", or_else: str = ""
) -> None:
    """Fetch a file, unless it is there.

    Args:
        path: where it shall lie.
        urls: http or https addresses of the same file; tried in turn.
        size: its bytes, where they are known.
        sha256: 64 hexadecimal digits, where they are known.
        or_else: what a user can do instead, for the error message.
    """
    if path.is_file():
        return
    by_hand = f"fetch it elsewhere and put it at {path}" + (f", or {or_else}" if or_else else "")
    if variable := offline_variable():
        first = urls[0] if urls else "no address is known"
        raise UserError(f"a file is missing and {variable} is set", f"{path.name}: {first}", by_hand)
    if not urls:
        raise UserError("a file is missing and has no address to download it from", path.name, by_hand)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    failures = []
    lock = path.with_name(f".{path.name}.lock")
    lock.touch()
    with held(lock, wait=True):
        if path.is_file():  # another process had it meanwhile
            return
        for url in urls:
            try:
                _fetch(url, part, size, label or path.name)
                if sha256 and (got := sha256_file(part)) != sha256:
                    _drop(part)
                    raise _Failure(f"SHA-256 is {got[:16]}..., not {sha256[:16]}...")
            except _Failure as failure:
                failures.append(f"{url}: {failure}")
                continue
            os.replace(part, path)
            _drop(part)
            return
    raise UserError(f"{path.name} cannot be downloaded", "; ".join(failures), by_hand)


class _Failure(Exception):
    """Why one address did not give the file."""


def _fetch(url: str, part: Path, size: int | None, label: str) -> None:
    """Bring ``part`` to its full length from one address."""
    if not url.startswith(("http://", "https://")):
        raise _Failure("not an http address")
    failure = _Failure("no answer")
    for _ in range(ATTEMPTS):
        try:
            _request(url, part, size, label)
            return
        except urllib.error.HTTPError as error:
            error.close()
            # Nothing is left to send: the part is the whole file already, or it is no part of this file.
            if error.code == 416 and part.is_file():
                if _length_of(error) == part.stat().st_size == (size or part.stat().st_size):
                    return
                _drop(part)
                failure = _Failure("HTTP 416")
                continue
            raise _Failure(f"HTTP {error.code}") from error
        except (OSError, http.client.HTTPException) as error:  # URLError, timeouts and cut connections among them
            failure = _Failure(str(getattr(error, "reason", None) or error) or type(error).__name__)
    raise failure


def _request(url: str, part: Path, size: int | None, label: str) -> None:
    note = part.with_name(part.name + ".json")
    headers = {"User-Agent": "ggm-image", "Accept-Encoding": "identity"}
    known = read_json_table(note) or {}
    have = part.stat().st_size if part.is_file() and known.get("url") == url and known.get("version") else 0
    if have and have == known.get("total"):
        return
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": known["version"]}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as sample:
        if sample.headers.get_content_type() == "text/html":
            raise _Failure("a web page instead of the file")
        start = 0
        if sample.status == 206:
            if not sample.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
                _drop(part)
                raise _Failure("it resumes at the wrong place")
            start = have
        length = sample.headers.get("Content-Length")
        total = start + int(length) if length and length.isdecimal() else None
        if size is not None and total is not None and total != size:
            raise _Failure(f"{total} bytes, not {size}")
        _check_room(part.parent, (total or size or 0) - start)
        # A weak ETag does not promise equal bytes.
        version = sample.headers.get("ETag") or sample.headers.get("Last-Modified") or ""
        write_json(note, {"url": url, "version": "" if version.startswith("W/") else version, "total": total})
        done = _copy(sample, part, start, total or size, label)
    if total is not None and done < total:
        raise OSError(f"the connection ended after {done} of {total} bytes")
    if size is not None and done != size:
        _drop(part)
        raise _Failure(f"{done} bytes, not {size}")


def _length_of(error: urllib.error.HTTPError) -> int | None:
    """Bytes of the whole file, as an answer 416 gives them (``Content-Range: bytes */1234``); None if it does not."""
    length = error.headers.get("Content-Range", "").rpartition("/")[2]
    return int(length) if length.isdecimal() else None


def _copy(sample: Any, part: Path, start: int, total: int | None, label: str) -> int:
    done = start
    bar = progress_bar(total=total, unit="B", label=label, scaled=True)
    with bar as advance, open(part, "r+b" if start else "wb") as file:
        file.seek(start)
        file.truncate()
        advance(start)
        while chunk := sample.read(CHUNK):
            file.write(chunk)
            done += len(chunk)
            advance(len(chunk))
            if total is not None and done > total:
                raise _Failure(f"more than {total} bytes")
    return done


def _check_room(folder: Path, wanted: int) -> None:
    free = shutil.disk_usage(folder).free
    if wanted > free:
        raise UserError(
            f"there must be room for {wanted / 1e9:.1f} GB in {folder}",
            f"{free / 1e9:.1f} GB are free",
            "make room, or set GGM_IMAGE_CACHE to a folder on another disk",
        )


def _drop(part: Path) -> None:
    part.unlink(missing_ok=True)
    part.with_name(part.name + ".json").unlink(missing_ok=True)
