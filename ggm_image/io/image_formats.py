"""The image formats that we write, and what each of them can store.

Nothing here imports torch, so that a command can refuse an output before it starts to work.
"""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ggm_image.errors import UserError
from ggm_image.io.marks import mark

if TYPE_CHECKING:
    from PIL.Image import Exif, Image

DEFAULT_QUALITY = 95
_MOST_EXIF = 65_533  # bytes in one segment of a JPEG
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT, _SOFTWARE = 282, 283, 296, 305
_EXIF_IFD, _EXIF_WIDTH, _EXIF_HEIGHT = 0x8769, 0xA002, 0xA003
_INCH = 2


@dataclass(frozen=True)
class ImageFormat:
    """One format.

    Attributes:
        name: as users and Pillow call it; Pillow's in capitals.
        modes: Pillow's modes that it keeps bit for bit where it is lossless.
        compression: ``none`` lost, ``lossy``, or ``either``.
        most_side: pixels of the longest side.
    """

    name: str
    suffixes: tuple[str, ...]
    modes: tuple[str, ...]
    compression: str
    most_side: int


PNG = ImageFormat("PNG", (".png",), ("L", "LA", "RGB", "RGBA", "I;16"), "none", 2**31 - 1)
JPEG = ImageFormat("JPEG", (".jpg", ".jpeg"), ("L", "RGB"), "lossy", 65_500)
WEBP = ImageFormat("WebP", (".webp",), ("RGB", "RGBA"), "either", 16_383)
TIFF = ImageFormat("TIFF", (".tif", ".tiff"), ("L", "LA", "RGB", "RGBA", "I;16"), "none", 2**31 - 1)
FORMATS = (PNG, JPEG, WEBP, TIFF)
IMAGE_SUFFIXES = tuple(suffix for entry in FORMATS for suffix in entry.suffixes)


def format_of(path: str | os.PathLike[str]) -> ImageFormat | None:
    """The format that a file's suffix names, in any case; None for any other suffix."""
    suffix = Path(path).suffix.lower()
    return next((entry for entry in FORMATS if suffix in entry.suffixes), None)


@dataclass(frozen=True)
class Encoding:
    """How images are written.

    Attributes:
        quality: of the lossy compression, 1 to 100; None for a lossless file.
    """

    format: ImageFormat = PNG
    quality: int | None = None

    @classmethod
    def choose(cls, form: ImageFormat, quality: int | str | None = None) -> "Encoding":
        """The encoding of a format at a quality, 95 by default where the format is usually lossy.

        Args:
            quality: 1 to 100, or ``lossless``.
        """
        if quality == "lossless":
            if form.compression == "lossy":
                fix = "name the output X.png, X.tif or X.webp"
                raise UserError(f"{form.name} is never lossless", "--quality lossless", fix)
            return cls(form)
        if form.compression == "none":
            if quality is not None:
                fix = "leave it out, or name the output X.jpg or X.webp"
                raise UserError("--quality belongs to JPEG and WebP", f"{form.name} is always lossless", fix)
            return cls(form)
        return cls(form, DEFAULT_QUALITY if quality is None else int(quality))

    @property
    def suffix(self) -> str:
        """The suffix of numbered files."""
        return self.format.suffixes[0]

    @property
    def described(self) -> dict[str, Any]:
        """For a manifest; empty for PNG."""
        if self.format is PNG:
            return {}
        return {"format": self.format.name, "quality": "lossless" if self.quality is None else self.quality}

    def check_size(self, width: int, height: int) -> None:
        """Raise UserError for an image whose sides are too long for the format."""
        if max(width, height) > self.format.most_side:
            what = f"a {self.format.name} file holds at most {self.format.most_side} pixels a side"
            raise UserError(what, f"the result has {width} x {height}", "name the output X.png or X.tif")


LOSSLESS_PNG = Encoding()


def losses(image: "Image", encoding: Encoding) -> list[str]:
    """What of an image the format cannot hold, in words; compression aside."""
    lost = []
    if image.mode == "I;16" and image.mode not in encoding.format.modes:
        lost.append("16 bits a pixel (reduced to 8)")
    if _loses_alpha(image, encoding.format) and image.getchannel("A").getextrema()[0] != 255:
        lost.append("transparency (composited on white)")
    if image.info.get("exif") and not _exif_fits(_exif(image), encoding.format):
        lost.append("EXIF (more than 64 KB)")
    if image.info.get("icc_profile") and _profile(image, _fitted_mode(image.mode, encoding.format)) is None:
        lost.append("the ICC profile (of other colours than the file's)")
    return lost


def encode(image: "Image", encoding: Encoding = LOSSLESS_PNG) -> bytes:
    """An image as a whole file, with the EXIF, ICC profile and resolution in its ``info``.

    Args:
        image: in mode L, LA, RGB, RGBA or I;16. What the format cannot hold is left out as `losses` says.
    """
    form, options = encoding.format, {}  # type: ImageFormat, dict[str, Any]
    fitted = _fitted(image, form)
    exif = _exif(image)
    # PNG says the software in the chunk beside the mark; WebP has a resolution in its EXIF only
    if (form is not PNG or image.info.get("exif")) and _exif_fits(exif, form):
        options["exif"] = exif.tobytes()
    if dpi := image.info.get("dpi"):
        options["dpi"] = dpi
    options["icc_profile"] = _profile(image, fitted.mode)
    if form is JPEG:
        options |= {"quality": encoding.quality, "subsampling": 0}  # 4:4:4: colours at full resolution
    elif form is WEBP:
        lossless = encoding.quality is None
        # exact: also the colours of transparent pixels
        options |= {"lossless": True, "exact": True} if lossless else {"quality": encoding.quality}
    elif form is TIFF:
        options["compression"] = "raw"  # Pillow's compressed ones cannot hold EXIF directories
    plain = fitted.copy()
    plain.info = {}  # of which Pillow would write more, e.g. comments
    file = io.BytesIO()
    plain.save(file, format=form.name.upper(), **options)
    return file.getvalue()


def marked_image(
    image: "Image", command: str, settings: Mapping[str, Any] | None = None, encoding: Encoding = LOSSLESS_PNG
) -> bytes:
    """The image as a file with our mark, see `ggm_image.io.marks.mark`; the same bytes for the same input."""
    return mark(encode(image, encoding), command, settings)


def _loses_alpha(image: "Image", form: ImageFormat) -> bool:
    return image.mode in ("LA", "RGBA") and "RGBA" not in form.modes


def _fitted_mode(mode: str, form: ImageFormat) -> str:
    """The mode in which a format holds an image."""
    if mode in form.modes:
        return mode
    if mode in ("LA", "RGBA") and "RGBA" in form.modes:
        return "RGBA"
    return "L" if mode in ("L", "LA", "I;16") and "L" in form.modes else "RGB"


def _fitted(image: "Image", form: ImageFormat) -> "Image":
    import numpy as np
    from PIL import Image

    mode = _fitted_mode(image.mode, form)
    if image.mode == mode:
        return image
    if image.mode == "I;16":
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif _loses_alpha(image, form):
        colours = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours).convert("RGB")
    return image.convert(mode)


def _exif(image: "Image") -> "Exif":
    """The image's EXIF with its size and resolution, and with us as the software where it names none."""
    from PIL import Image

    exif = Image.Exif()
    if content := image.info.get("exif"):
        exif.load(content)
    if dpi := image.info.get("dpi"):
        exif[_X_RESOLUTION], exif[_Y_RESOLUTION] = dpi
        exif[_RESOLUTION_UNIT] = _INCH
    exif.setdefault(_SOFTWARE, "ggm-image")
    inner = exif.get_ifd(_EXIF_IFD) if _EXIF_IFD in exif else {}
    for tag, side in ((_EXIF_WIDTH, image.width), (_EXIF_HEIGHT, image.height)):
        if tag in inner:
            inner[tag] = side
    return exif


def _exif_fits(exif: "Exif", form: ImageFormat) -> bool:
    return form is not JPEG or len(exif.tobytes()) <= _MOST_EXIF


def _profile(image: "Image", mode: str) -> bytes | None:
    """The image's ICC profile where it is one of the mode's colours."""
    profile = image.info.get("icc_profile")
    colours = b"GRAY" if mode in ("L", "LA", "I;16") else b"RGB "
    return profile if profile and profile[16:20] == colours else None
