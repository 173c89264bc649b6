"""What a file that we wrote says of itself: who made it, how, and whether it was changed since."""

import hashlib
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from ggm_image.errors import UserError
from ggm_image.io.image_formats import Encoding, encode, marked_image
from ggm_image.io.marks import mark_gif, read_mark
from ggm_image.io.outputs import Gate
from tests.io.small_images import ENCODINGS, gif, noise


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_a_marked_image(mode: str, tmp_path: Path) -> None:
    """Pillow reads the same pixels, the software and the settings; the bytes depend on both alone."""
    data = marked_image(noise(0, mode), "sample", {"seed": 3, "name": "Fréchet"})
    assert data == marked_image(noise(0, mode), "sample", {"seed": 3, "name": "Fréchet"})
    with Image.open(io.BytesIO(data)) as image:
        assert image.tobytes() == noise(0, mode).tobytes()
        assert image.info["Software"] == "ggm-image"
        assert json.loads(image.info["ggm-image"])["settings"] == {"seed": 3, "name": "Fréchet"}
    (tmp_path / "a.png").write_bytes(data)
    mark = read_mark(tmp_path / "a.png")
    assert mark is not None
    assert mark["command"] == "sample"
    assert mark["intact"]
    plain = io.BytesIO()
    noise(0, mode).save(plain, format="PNG")
    assert mark["sha256"] == hashlib.sha256(plain.getvalue()).hexdigest()


def test_a_mark_never_grows_beyond_what_pillow_reads(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(marked_image(noise(), "sample", {"classes": ["x" * 100] * 20_000}))
    with Image.open(tmp_path / "a.png") as image:
        image.load()
        assert len(image.info["ggm-image"]) < 1000
    Gate("sample").check_file(tmp_path / "a.png")


@ENCODINGS
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_a_mark_in_every_format(encoding: Encoding, mode: str, tmp_path: Path) -> None:
    """Pillow reads the marked file as the plain one, and a byte beside the mark that changes breaks it."""
    path, settings = tmp_path / "a", {"seed": 3, "name": "Fréchet"}
    data = marked_image(noise(0, mode), "sample", settings, encoding)
    assert data == marked_image(noise(0, mode), "sample", settings, encoding)
    path.write_bytes(data)
    mark = read_mark(path)
    assert mark is not None
    assert (mark["command"], mark["intact"], mark["settings"]) == ("sample", True, settings)
    with Image.open(path) as image, Image.open(io.BytesIO(encode(noise(0, mode), encoding))) as plain:
        assert image.format == plain.format == encoding.format.name.upper()
        assert image.tobytes() == plain.tobytes()
    start, end = data.index(b'{"command"') - 24, data.index(b'"}}') + 8
    for place in (*range(12, start, 7), *range(end, len(data), 7)):
        changed = bytearray(data)
        changed[place] ^= 4
        path.write_bytes(changed)
        assert not (read_mark(path) or {"intact": False})["intact"], place
    for others in (data[:-1], data + b"notes", encode(noise(0, mode), encoding)):
        path.write_bytes(others)
        with pytest.raises(UserError, match="exists and was not written by this command"):
            Gate("sample", encoding=encoding).check_file(path)


def test_a_marked_gif(tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    path.write_bytes(mark_gif(gif(), "sample"))
    with Image.open(path) as image:
        assert image.n_frames == 2
        image.seek(1)
        image.load()
    Gate("sample").check_file(path)
    path.write_bytes(gif())
    with pytest.raises(UserError, match="no mark"):
        Gate("sample").check_file(path)
    changed = bytearray(mark_gif(gif(), "sample"))
    changed[20] ^= 1
    path.write_bytes(changed)
    with pytest.raises(UserError, match="changed since"):
        Gate("sample").check_file(path)
