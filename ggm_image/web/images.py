"""What goes between the browser and the pipelines: uploads, masks, enlarged images, files to download."""

import uuid
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image, ImageChops

from ggm_image.errors import UserError
from ggm_image.image.inputs import open_single_image
from ggm_image.image.io import header_size
from ggm_image.io.files import read_plain
from ggm_image.io.outputs import MANIFEST, Gate, numbered
from ggm_image.pipelines.sample_folder import SampleFolder

MOST_BYTES = 32 << 20
"""Of an uploaded file."""
MOST_PIXELS = 2048 * 2048
"""Of an uploaded image, and of an extended one."""
SHOWN_SIDE = 512
"""Small images are enlarged by a whole factor until their longer side has about so many pixels."""
MOST_SHOWN = 1024
"""Pixels of the longer side of a large image in the browser; results keep their own size."""


def check_pixels(width: int, height: int) -> None:
    """Raise UserError for an image that is too large for the page."""
    if width * height > MOST_PIXELS:
        side = int(MOST_PIXELS**0.5)
        raise UserError(
            f"the page takes images of at most {MOST_PIXELS / 1e6:.1f} million pixels",
            f"{width} x {height} is {width * height / 1e6:.1f} million",
            f"resize it to {side} x {side} or less, or use the command line",
        )


def open_upload(path: str | Path, name: str = "") -> Image.Image:
    """An uploaded file as an image, in its own mode; its size is checked before it is decoded."""
    name = name or Path(path).name
    if Path(path).stat().st_size > MOST_BYTES:
        got = f"{name}: {Path(path).stat().st_size / 1e6:.0f} MB"
        raise UserError(f"the page takes files of at most {MOST_BYTES >> 20} MB", got, "use the command line")
    content = read_plain(path)
    if (size := header_size(content)) is not None:
        check_pixels(*size)
    try:
        image = open_single_image(content, "image")
    except UserError as error:  # names the content "bytes"
        raise UserError(error.what, str(error.got).replace("bytes:", f"{name}:", 1), error.fix) from error
    check_pixels(*image.size)
    return image


def shown(image: Image.Image) -> Image.Image:
    """The image as the browser shows it: enlarged by a whole factor, or reduced."""
    colour = image if image.mode in ("L", "LA", "RGB", "RGBA") else image.convert("RGB")
    factor = SHOWN_SIDE // max(colour.size)
    if factor > 1:
        return colour.resize((colour.width * factor, colour.height * factor), Image.Resampling.NEAREST)
    if max(colour.size) > MOST_SHOWN:
        colour = colour.copy()
        colour.thumbnail((MOST_SHOWN, MOST_SHOWN))
    return colour


def painted_mask(layers: Sequence[Image.Image]) -> Bool[np.ndarray, "h w"] | None:
    """Where any layer of the editor is painted, at the editor's size; None where nothing is."""
    total = None
    for layer in layers:
        alpha = layer.convert("RGBA").getchannel("A")
        total = alpha if total is None or total.size != alpha.size else ImageChops.lighter(total, alpha)
    if total is None:
        return None
    mask = np.asarray(total) >= 128
    return mask if mask.any() else None


def pack_samples(images: Sequence[Image.Image], manifest: dict[str, Any], cache: Path) -> Path:
    """A zip of the folder that ``ggm-image sample --out`` writes for the same request."""
    folder = SampleFolder(_new_folder(cache) / "samples", manifest)
    folder.claim()
    for k, image in enumerate(images):
        folder.write(k, image)
    folder.finish()
    return _zip(folder.path, len(images))


def pack_inpainted(images: list[Image.Image], manifest: Mapping[str, Any], cache: Path) -> Path:
    """A zip of the folder that ``ggm-image inpaint --out`` writes; arguments as in `pack_samples`."""
    folder = _new_folder(cache) / "inpainted"
    Gate("inpaint").save_images(images, folder, manifest)
    return _zip(folder, len(images))


def _new_folder(cache: Path) -> Path:
    folder = cache / uuid.uuid4().hex
    folder.mkdir(parents=True)
    return folder


def _zip(folder: Path, count: int) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for name in (*map(numbered, range(count)), MANIFEST):
            archive.write(folder / name, f"{folder.name}/{name}")
    return path
