"""Small tar shards of WebDataset."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from tests.conftest import draw_picture


def png(seed: int) -> bytes:
    """The file of one image of 8 x 8 pixels."""
    file = io.BytesIO()
    Image.fromarray(draw_picture(seed)).save(file, format="PNG")
    return file.getvalue()


def write_tar(path: Path, files: Mapping[str, bytes], mode: str = "w") -> Path:
    """A tar of ``files`` in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def samples(start: int, stop: int, classes: int = 3) -> dict[str, bytes]:
    """Files of the samples ``start ... stop``: image k and the class k modulo ``classes``."""
    files = {}
    for k in range(start, stop):
        files[f"{k:06d}.png"] = png(k)
        files[f"{k:06d}.cls"] = str(k % classes).encode()
    return files


def write_shards(folder: Path, sizes: tuple[int, ...] = (4, 1, 3, 5, 2)) -> str:
    """Shards ``000.tar`` ... of the given numbers of samples; the pattern that means them all."""
    start = 0
    for number, size in enumerate(sizes):
        write_tar(folder / f"{number:03d}.tar", samples(start, start + size))
        start += size
    return f"{folder}/{{000..{len(sizes) - 1:03d}}}.tar"
