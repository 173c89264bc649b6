"""Extract one file from a downloaded zip, without trusting the size that the zip states."""

import zipfile
import zlib
from pathlib import Path

from ggm_image.errors import UserError
from ggm_image.io.files import atomic_path

MAX_RATIO = 20  # weights barely compress; a zip bomb compresses a thousandfold
CHUNK = 1 << 20


def unpack_member(archive: Path, member: str, out: Path) -> None:
    """Write the one file called ``member`` (in any folder of the zip) to ``out``."""
    limit = MAX_RATIO * archive.stat().st_size
    try:
        with zipfile.ZipFile(archive) as opened:
            found = [info for info in opened.infolist() if Path(info.filename).name == member]
            if len(found) != 1:
                raise UserError(f"{archive} must hold one {member}", f"{len(found)}", "remove it and fetch it again")
            if found[0].file_size > limit:
                raise _bomb(archive, found[0].file_size)
            written = 0
            with atomic_path(out) as temporary, opened.open(found[0]) as source, open(temporary, "wb") as file:
                while chunk := source.read(CHUNK):
                    written += len(chunk)
                    if written > limit:
                        raise _bomb(archive, written)
                    file.write(chunk)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{archive} must be a whole zip", str(error), "remove it and fetch it again") from error


def _bomb(archive: Path, size: int) -> UserError:
    got = f"{size} bytes out of {archive.stat().st_size}"
    return UserError(f"{archive} must hold weights", got, "it looks like a zip bomb: remove it")
