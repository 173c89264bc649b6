"""Small images, and every way to write one."""

import io

import numpy as np
import pytest
from PIL import Image

from ggm_image.io.image_formats import FORMATS, WEBP, Encoding


def noise(seed: int = 0, mode: str = "RGB") -> Image.Image:
    size = {"L": (5, 4), "RGB": (5, 4, 3), "RGBA": (5, 4, 4)}[mode]
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8))


def gif() -> bytes:
    file = io.BytesIO()
    noise(0).save(file, format="GIF", save_all=True, append_images=[noise(1)], loop=0)
    return file.getvalue()


def encodings() -> list[Encoding]:
    return [Encoding.choose(form) for form in FORMATS] + [Encoding(WEBP)]


ENCODINGS = pytest.mark.parametrize("encoding", encodings(), ids=lambda e: f"{e.format.name} {e.quality}")
