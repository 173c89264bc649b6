"""The seam between known pixels and decoded ones."""

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.image.io import to_storable_mode
from ggm_image.image.metadata import with_metadata


def blend_seam(
    known: UInt8[Tensor, "3 h w"], sampled: UInt8[Tensor, "3 h w"], mask: Bool[np.ndarray, "h w"], *, reach: float
) -> UInt8[Tensor, "3 h w"]:
    """``sampled`` with a smooth correction inside the hole that makes it meet the known pixels at the border.

    The tokenizer does not give back known pixels exactly; what it errs by at the border would be seen as a seam. The
    correction c equals ``known - sampled`` beside the hole and solves (Laplace - 1 / reach^2) c = 0 in it, so that it
    fades out over about ``reach`` pixels: Poisson image editing (Perez et al., SIGGRAPH 2003), screened.

    Args:
        known: pixels outside the hole count.
        sampled: what the tokenizer decoded.
        mask: True inside.
        reach: length in pixels over which the correction fades, > 0.

    Returns:
        ``sampled`` inside the hole, corrected, and ``known`` outside it.
    """
    from scipy import ndimage, sparse  # late: samples need none of it
    from scipy.sparse.linalg import spsolve

    inside = torch.from_numpy(mask)
    if mask.all() or not mask.any():
        return torch.where(inside, sampled, known)
    # Solve near the border only: farther inside the correction is less than half a grey value.
    near = mask & (ndimage.distance_transform_edt(mask) <= 8 * reach)
    number = np.full(mask.shape, -1)
    number[near] = np.arange(near.sum())
    error = (known.to(torch.float64) - sampled.to(torch.float64)).numpy()  # (3, h, w)
    diagonal, right = np.full(near.sum(), 1 / reach**2), np.zeros((near.sum(), 3))
    rows, columns = [], []
    # One equation a pixel: its own correction against those of its four neighbours, which outside the hole are known.
    for axis, shift in ((0, 1), (0, -1), (1, 1), (1, -1)):
        here, there = _shifted(mask.shape, axis, shift)
        a, b = number[here], number[there]
        diagonal += np.bincount(a[a >= 0], minlength=len(diagonal))
        both = (a >= 0) & (b >= 0)
        rows.append(a[both])
        columns.append(b[both])
        edge = (a >= 0) & ~mask[there]
        np.add.at(right, a[edge], error[:, there[0], there[1]][:, edge].T)
    row, column = np.concatenate(rows), np.concatenate(columns)
    matrix = sparse.coo_matrix((-np.ones(len(row)), (row, column)), shape=(len(diagonal),) * 2).tocsc()
    correction = spsolve(matrix + sparse.diags(diagonal, format="csc"), right).reshape(-1, 3)
    result = sampled.to(torch.float64).numpy().copy()
    result[:, near] += correction.T
    painted = torch.from_numpy(result).round().clamp(0, 255).to(torch.uint8)
    return torch.where(inside, painted, known)


def _shifted(shape: tuple[int, ...], axis: int, shift: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Two views of an image: pixels that have a neighbour on one side, and those neighbours."""
    near, far = slice(0, shape[axis] - 1), slice(1, shape[axis])
    here, there = (near, far) if shift > 0 else (far, near)
    full = slice(None)
    return ((here, full), (there, full)) if axis == 0 else ((full, here), (full, there))


def composite(
    image: Image.Image,
    sampled: Image.Image,
    mask: Bool[np.ndarray, "h w"],
    *,
    feather: int = 0,
    origin: tuple[int, int] | None = None,
) -> Image.Image:
    """``sampled`` inside the hole, ``image`` outside it, bit for bit.

    Args:
        image: the input as `load_mask` gives it; other modes go through `to_storable_mode` first.
        sampled: RGB, of the same size; with ``origin`` a part of it that holds the whole hole.
        mask: True where ``sampled`` is seen.
        feather: width in pixels of a band inside the hole over which the input fades out. The input's
            transparent pixels carry no weight in the blend.
        origin: row and column of ``image`` at which ``sampled`` lies.

    Returns:
        An image of the input's mode (see `to_storable_mode`), opaque inside the hole, with its own alpha outside.
    """
    image = to_storable_mode(image)
    sizes = image.size, sampled.size if origin is None else image.size, (mask.shape[1], mask.shape[0])
    if len(set(sizes)) > 1:
        shown = "image {} x {}, sample {} x {}, mask {} x {}".format(*sum(sizes, ()))
        raise UserError("image, sample and mask must be of one size", shown, "resize them")
    if feather < 0:
        raise UserError("feather must be at least 0 pixels", feather, "use --feather 0")
    result = image.copy()
    result.info = {}
    if mask.any():
        # Blend the hole's bounding box only. One more pixel on each side holds the nearest known pixels.
        rows, columns = (np.nonzero(mask.any(1 - axis))[0] for axis in (0, 1))
        top, left = max(0, int(rows[0]) - 1), max(0, int(columns[0]) - 1)
        bottom, right = min(mask.shape[0], int(rows[-1]) + 2), min(mask.shape[1], int(columns[-1]) + 2)
        row, column = origin or (0, 0)
        new = sampled.crop((left - column, top - row, right - column, bottom - row))
        box = (left, top, right, bottom)
        result.paste(_blend(image.crop(box), new, mask[top:bottom, left:right], feather), box)
    return with_metadata(result, image)


def _blend(image: Image.Image, sampled: Image.Image, mask: Bool[np.ndarray, "h w"], feather: int) -> Image.Image:
    """`composite` of parts of one size."""
    from scipy import ndimage  # late: samples need none of it

    old, new = np.asarray(image), _as_mode(sampled, image.mode)
    if feather and not mask.all():
        share = np.minimum(1, ndimage.distance_transform_edt(mask) / (feather + 1)).astype(np.float32)[..., None]
        alpha = old[..., -1:] / np.float32(255) if image.mode in ("LA", "RGBA") else np.float32(1)
        behind = (1 - share) * alpha
        new = (share * new + behind * old.reshape(new.shape)) / np.maximum(share + behind, np.float32(1e-12))
    if image.mode in ("LA", "RGBA"):
        new[..., -1] = 255
    result = old.copy().reshape(new.shape)
    result[mask] = new[mask].round().astype(old.dtype)
    return Image.fromarray(result.reshape(old.shape))


def _as_mode(sampled: Image.Image, mode: str) -> np.ndarray:
    """RGB pixels as floats (h, w, channels) on the scale of ``mode``."""
    if mode == "I;16":
        return np.asarray(sampled.convert("L"), dtype=np.float32)[..., None] * 257
    values = np.array(sampled.convert("RGB").convert(mode), dtype=np.float32)
    return values.reshape(*values.shape[:2], -1)
