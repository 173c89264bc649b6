"""How near one image is to another: PSNR and SSIM on 8-bit pixels."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from ggm_image.errors import UserError

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5


def _check(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.ndim != 4 or len(a) == 0:
        raise UserError(
            "images to compare must have one shape (n, c, h, w)",
            f"got {tuple(a.shape)} and {tuple(b.shape)}",
            "resize one",
        )
    if a.dtype != torch.uint8 or b.dtype != torch.uint8:
        got = f"got {a.dtype} and {b.dtype}"
        raise UserError("images to compare must be uint8", got, "convert them with to_uint8")


def psnr_each(a: UInt8[Tensor, "n c h w"], b: UInt8[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """PSNR of each pair in dB, ``10 log10(255^2 / MSE)``; infinite if they are equal. Pixels lie in [0, 255].

    Raises:
        UserError: if the shapes differ or the pixels are not uint8.
    """
    _check(a, b)
    error = (a.double() - b.double()).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(255**2 / error)


def psnr(a: UInt8[Tensor, "n c h w"], b: UInt8[Tensor, "n c h w"]) -> Float[Tensor, ""]:
    """Mean over the pairs of `psnr_each`, in dB: not the PSNR of the mean error, which is lower."""
    return psnr_each(a, b).mean()


def ssim_each(a: UInt8[Tensor, "n c h w"], b: UInt8[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Structural similarity of each pair, in [-1, 1]; pixels lie in [0, 255].

    Wang, Bovik, Sheikh, Simoncelli 2004 with their constants: a Gaussian window of 11 x 11 pixels, sigma 1.5,
    K1 = 0.01, K2 = 0.03, population variances, only where the window lies wholly inside, nothing downsampled.
    Taken on each colour channel and averaged (the paper has grey images only). Where a side is shorter than
    11, the window has the longest odd length that fits.

    Raises:
        UserError: if the shapes differ or the pixels are not uint8.
    """
    _check(a, b)
    channels = a.shape[1]
    x, y = a.double(), b.double()
    weights = [_gaussian(x.shape[dim], x) for dim in (2, 3)]

    def blur(values: Tensor) -> Tensor:
        for dim, weight in zip((2, 3), weights, strict=True):
            shape = (channels, 1, -1, 1) if dim == 2 else (channels, 1, 1, -1)
            kernel = weight.expand(channels, -1).reshape(shape)
            values = F.conv2d(values, kernel, groups=channels)
        return values

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def ssim(a: UInt8[Tensor, "n c h w"], b: UInt8[Tensor, "n c h w"]) -> Float[Tensor, ""]:
    """Mean over the pairs of `ssim_each`."""
    return ssim_each(a, b).mean()


def _gaussian(side: int, like: Tensor) -> Tensor:
    length = min(SSIM_WINDOW, side - (side + 1) % 2)
    offsets = torch.arange(length, dtype=like.dtype, device=like.device) - length // 2
    weights = torch.exp(-(offsets**2) / (2 * SSIM_SIGMA**2))
    return weights / weights.sum()
