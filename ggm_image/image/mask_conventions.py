"""What a mask means: where to paint, by the conventions that masks follow.

| mask | what is painted |
| --- | --- |
| bool, Pillow's mode 1 | True |
| grey, 8 or 16 bits | values from the middle of the range on, 128 or 32,896 |
| values 0 and 1, or 0 and one dark grey | the larger one |
| floats in [0, 1] | values from 0.5 on |
| two colours, with the shades between them | the lighter one |
| strokes of one colour on a transparent layer | the strokes |
| an image, or black, with transparent parts | the transparent parts |
| a palette or grey values, and ``index`` | that index or value |

Anything else is ambiguous and refused.
"""

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.image.inputs import ImageLike, image_of_array, open_single_image

THRESHOLD = 128
"""A mask's pixel is painted from this grey value on; without a mask, a pixel less opaque than this."""

MaskLike = ImageLike

_WHITE_ONLY = "paint white on black"
_SHADE = 32
"""Difference of a channel up to which two colours of a compressed file count as one."""

_NAMES = {
    (0, 0, 0): "black", (255, 255, 255): "white", (255, 0, 0): "red", (0, 255, 0): "green", (0, 0, 255): "blue",
    (255, 255, 0): "yellow", (255, 0, 255): "magenta", (0, 255, 255): "cyan",
}  # fmt: skip


def read_mask(mask: MaskLike, *, index: int | None = None) -> tuple[Bool[np.ndarray, "h w"], str]:
    """Where to paint.

    Args:
        mask: see `open_single_image`; arrays and tensors may also be bool, integers or floats in [0, 1], with leading
            or trailing dimensions of 1.
        index: paint where a palette's index or a grey value is this; None for the conventions above.

    Returns:
        True where to paint, and how the mask was read, in words; empty for a plain mask of black and white or grey.
    """
    if isinstance(mask, np.ndarray | Tensor):
        values = _as_array(mask)
        if values.ndim == 2:
            return _chosen(values, index) if index is not None else _of_array(values)
        mask = image_of_array(mask, "mask")
    image = open_single_image(mask, "mask")
    transparent = image.has_transparency_data
    if index is not None:
        if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
            fix = "leave the index out, or save the mask with a palette"
            raise UserError("only a mask of grey values or with a palette has an index", f"mode {image.mode}", fix)
        return _chosen(np.asarray(image), index)
    if image.mode == "1":
        return np.asarray(image), ""
    if image.mode == "F":
        return _of_floats(np.asarray(image))
    if image.mode.startswith("I"):
        return _of_levels(np.asarray(image).astype(np.int64), 65535)
    if transparent:
        return _of_layer(np.asarray(image.convert("RGBA")))
    if image.mode == "L":
        return _of_levels(np.asarray(image), 255)
    indices = np.unique(np.asarray(image)).tolist() if image.mode == "P" else []
    return _of_colours(np.asarray(image.convert("RGB")), indices)


def _as_array(mask: np.ndarray | Tensor) -> np.ndarray:
    """The array without dimensions of 1 before or after (h, w)."""
    if isinstance(mask, Tensor):
        mask = mask.detach().cpu()
        values = np.asarray((mask.float() if mask.is_floating_point() else mask).numpy())
    else:
        values = mask
    while values.ndim > 2 and values.shape[0] == 1:
        values = values[0]
    while values.ndim > 2 and values.shape[-1] == 1:
        values = values[..., 0]
    return values


def _chosen(values: np.ndarray, index: int) -> tuple[np.ndarray, str]:
    mask = values == index
    if not mask.any():
        present = np.unique(values)
        raise UserError(f"the mask must hold index {index}", _listed(present), "choose one of these")
    return mask, ""


def _of_array(values: np.ndarray) -> tuple[np.ndarray, str]:
    if values.dtype == np.bool_:
        return values, ""
    if values.dtype.kind == "f":
        return _of_floats(values)
    if values.dtype.kind not in "iu":
        raise UserError("a mask array must hold bool, integers or floats", str(values.dtype), "convert it")
    if values.size and not (values.min() >= 0 and values.max() <= 65535):
        got = f"{values.min()} to {values.max()}"
        raise UserError("a mask array's integers must lie in [0, 65535]", got, "use 0 and 255, or bool")
    deep = values.dtype == np.uint16 or (values.size and values.max() > 255)
    return _of_levels(values.astype(np.int64), 65535 if deep else 255)


def _of_floats(values: np.ndarray) -> tuple[np.ndarray, str]:
    if not values.size or (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        return values >= 0.5, ""
    if np.isfinite(values).all() and values.min() >= 0 and values.max() <= 255 and (values == np.rint(values)).all():
        return _of_levels(values.astype(np.int64), 255)
    got = f"{values.dtype}, {values.min():g} to {values.max():g}"
    raise UserError("a mask's floats must lie in [0, 1]", got, "scale them, or pass bool")


def _of_levels(values: np.ndarray, full: int) -> tuple[np.ndarray, str]:
    """Grey values in [0, full]."""
    levels = np.unique(values)
    middle = THRESHOLD if full == 255 else THRESHOLD * 257
    low, high = (int(levels[0]), int(levels[-1])) if len(levels) else (0, 0)
    if 0 < high < middle and (high == 1 or (low == 0 and len(levels) == 2)):
        return values == high, f"values {low if len(levels) == 2 else 0} and {high}; {high} is painted"
    if full > 255 >= high and len(levels) > 1:
        mask, how = _of_levels(values, 255)
        return mask, how or f"16 bits, but values up to {high}; those from {THRESHOLD} on are painted"
    if len(levels) == 2 and (high < middle or low >= middle) and high - low > full // 8:
        return values == high, f"values {low} and {high}; {high} is painted"
    if high < middle and len(levels) > 2:
        fix = f"{_WHITE_ONLY}, or choose one value with --mask-index (mask_index in Python)"
        raise UserError(f"a mask of grey values must reach {middle} where to paint", _listed(levels), fix)
    return values >= middle, ""


def _of_colours(rgb: np.ndarray, indices: list[int]) -> tuple[np.ndarray, str]:
    """Colours (h, w, 3), and the indices of a palette that are in use."""
    from scipy import ndimage  # late: samples need none of it

    if _is_grey(rgb):
        return _of_levels(_luma(rgb), 255)
    values, counts, where = _distinct(rgb)
    pair = _two_colours(values, counts)
    if pair is None:  # one colour everywhere
        return _of_levels(_luma(rgb), 255)
    dark, light = pair
    toward = light - dark
    share = ((values - dark) @ toward / (toward @ toward)).clip(0, 1)  # (m,) of the way from dark to light
    off = (np.abs(values - dark - share[:, None] * toward) > _SHADE).any(axis=1)[where]  # (h, w)
    # A compressed file has a rim of other colours, a pixel or two wide, around what was painted.
    plain = len(values) <= 64
    third = off.any() if plain else off.mean() > 0.05 or ndimage.binary_erosion(off, np.ones((3, 3))).any()
    if third:
        if indices:
            got = f"a palette with indices {', '.join(map(str, indices[:8]))}{' ...' if len(indices) > 8 else ''}"
            fix = f"choose one with --mask-index {indices[1]} (mask_index={indices[1]} in Python)"
            raise UserError("a mask with several objects is ambiguous", got, fix)
        raise UserError("a mask of three colours or more is ambiguous", f"{len(values)} colours", _WHITE_ONLY)
    if dark.max() > 16 and _luma(light) - _luma(dark) < _SHADE:
        got = f"{_name(dark)} and {_name(light)}"
        raise UserError("a mask of two equally bright colours is ambiguous", got, _WHITE_ONLY)
    return (share >= 0.5)[where], f"{_name(dark)} and {_name(light)}; {_name(light)} is painted"


def _of_layer(rgba: np.ndarray) -> tuple[np.ndarray, str]:
    """An image with an alpha channel, (h, w, 4)."""
    opaque = rgba[..., 3] >= THRESHOLD
    over_black = np.rint(rgba[..., :3] * (rgba[..., 3:] / 255)).astype(np.uint8)
    if opaque.all():
        return _of_colours(over_black, [])
    if not opaque.any():
        return opaque, ""
    seen = rgba[opaque][:, :3]  # (n, 3)
    luma = _luma(seen)
    transparent = "image with transparent parts, and these are painted"
    if _is_grey(seen):
        if luma.max() < 16:
            return ~opaque, "black with transparent parts, and these are painted"
        if luma.max() < THRESHOLD and luma.max() - luma.min() < _SHADE:
            return opaque, "dark strokes on a transparent layer, and these are painted"
        if luma.min() < THRESHOLD and ((luma >= 32) & (luma < 224)).mean() > 0.25:
            return ~opaque, transparent
        how = "" if luma.min() >= THRESHOLD else "black and white, with transparent parts as black"
        return _luma(over_black) >= THRESHOLD, how
    values, counts, _ = _distinct(seen)
    pair = _two_colours(values, counts)
    if pair is None:
        return opaque, f"{_name(values[counts.argmax()])} strokes on a transparent layer, and these are painted"
    if len(values) == 2 and (pair[0].max() < 16 or pair[1].min() >= 240):
        got = f"{_name(pair[0])}, {_name(pair[1])} and transparent"
        raise UserError("a mask of two colours and transparent parts is ambiguous", got, _WHITE_ONLY)
    return ~opaque, transparent


def _is_grey(rgb: np.ndarray) -> bool:
    """Whether the channels agree, up to what a compressed file makes of grey."""
    return bool((rgb.max(axis=-1) - rgb.min(axis=-1) <= 8).all())


def _luma(rgb: np.ndarray) -> np.ndarray:
    """Pillow's grey value, of uint8 (..., 3)."""
    # channel by channel in 32 bits: a photograph's mask has as many pixels as the photograph
    weighted = np.full(rgb.shape[:-1], 32768, dtype=np.int32)
    for channel, weight in enumerate((19595, 38470, 7471)):
        weighted += rgb[..., channel].astype(np.int32) * np.int32(weight)
    return weighted >> 16


def _distinct(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct colours (m, 3) of uint8 (..., 3), how often each occurs, and which one is where."""
    packed = rgb.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], dtype=np.uint32)
    values, where, counts = np.unique(packed, return_inverse=True, return_counts=True)
    colours = np.stack([values >> 16, values >> 8 & 255, values & 255], axis=1).astype(np.int64)
    return colours, counts, where.reshape(packed.shape)


def _two_colours(values: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The two most frequent colours that are not shades of each other, the darker one first; None if there is one."""
    first = values[counts.argmax()]
    other = np.abs(values - first).max(axis=1) > (8 if len(values) == 2 else 2 * _SHADE)
    if not other.any():
        return None
    second = values[other][counts[other].argmax()]
    pair = sorted((first, second), key=lambda colour: (int(_luma(colour)), int(colour.sum())))
    return pair[0], pair[1]


def _name(colour: np.ndarray) -> str:
    red, green, blue = (int(channel) for channel in colour)
    return _NAMES.get((red, green, blue), f"rgb({red}, {green}, {blue})")


def _listed(levels: np.ndarray) -> str:
    shown = ", ".join(str(level) for level in levels[:8].tolist())
    return f"values {shown}{f' ... {levels[-1]}' if len(levels) > 8 else ''}"
