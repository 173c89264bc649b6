"""The `inpaint` command."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ggm_image.cli.options import (
    GroupedCommand,
    device_option,
    how,
    json_option,
    out_option,
    overwrite_option,
    print_json,
    seed_option,
    what,
    where,
)
from ggm_image.cli.sampling import (
    asked_labels,
    check_input,
    find_described_model,
    format_options,
    load,
    model_options,
    output_encoding,
    sampler_options,
)
from ggm_image.io.image_formats import losses
from ggm_image.io.outputs import Gate, check_inputs_kept, numbered
from ggm_image.pipelines.classes import turns
from ggm_image.runtime.streams import say


class ScalesType(click.ParamType):
    """``auto``, or a whole number from 1 on."""

    name = "auto|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == "auto":
            return "auto"
        if str(value).isdecimal() and 1 <= int(value) <= 64:
            return int(value)
        return self.fail(f"{value!r} is neither auto nor a whole number from 1 to 64", param, ctx)


SHEET_SIDE = 128
"""Pixels to which the shorter side of an image is enlarged on a contact sheet."""
GAP = 4
"""Pixels between two images on it."""


@click.command(cls=GroupedCommand)
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("mask", type=click.Path(path_type=Path), required=False)
@what(
    *model_options("What the image shows; several take turns."),
    click.option(
        "-n", "count", type=click.IntRange(1, 10_000), default=1, show_default=True, help="Number of samples."
    ),
    click.option("--extend", metavar="SIDE=PX,...", help="Extend the image, e.g. left=32,top=16."),
    click.option("--fit", is_flag=True, help="Resize a MASK of another size to the image."),
    click.option("--mask-index", type=click.IntRange(0, 65535), help="Palette index or grey value of MASK to inpaint."),
    click.option(
        "--dilate", type=click.IntRange(min=0), default=0, show_default=True, help="Pixels to grow the mask by."
    ),
)
@how(
    sampler_options,
    click.option("--scales", type=ScalesType(), default="auto", show_default=True, help="Resolutions for a wide mask."),
    click.option(
        "--tau",
        type=click.FloatRange(min=0, min_open=True),
        help="How far each scale may depart from the coarser one.  [default: 1]",
    ),
    click.option("--context", type=click.IntRange(min=0), help="Known pixels around the mask that the model sees."),
    click.option(
        "--feather", type=click.IntRange(min=0), default=0, show_default=True, help="Pixels to blend over in the mask."
    ),
    seed_option,
    device_option,
)
@where(
    out_option("inpainted.png", help="File for one sample or a contact sheet (.png, .jpg, .webp, .tif), or a folder."),
    format_options,
    overwrite_option,
    json_option,
)
def inpaint(
    image: Path,
    mask: Path | None,
    out: Path,
    image_format: str | None,
    quality: int | str | None,
    overwrite: bool,
    model_name: str,
    tokenizer: str | None,
    classes: tuple[str, ...],
    count: int,
    dilate: int,
    feather: int,
    extend: str | None,
    context: int | None,
    fit: bool,
    mask_index: int | None,
    scales: Any,
    tau: float | None,
    preset: str,
    seed: int,
    device: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Inpaint the white part of MASK; every other pixel of IMAGE stays as it is, bit for bit.

    An IMAGE with transparent parts needs no MASK; a MASK larger than IMAGE, or --extend, paints beyond it. With -n the
    samples go to OUT-0.png, OUT-1.png ... and OUT shows them side by side after the input; into a folder OUT they go
    as single files with a manifest. With K classes, sample k gets class k mod K.

    Results keep the EXIF, the ICC profile and the resolution of IMAGE. JPEG and WebP compression changes every pixel:
    known ones are exact in PNG, TIFF, and WebP with --quality lossless.

    --scales auto goes from coarse to fine where the mask is wide; 1 is the full resolution only.

    A file or folder that `inpaint` did not write is only replaced with --overwrite; inputs never are.
    """
    from ggm_image.image.extension import Extension

    single, encoding = output_encoding(out, image_format, quality)
    gate = Gate("inpaint", overwrite, encoding=encoding)
    sheet = out if single and count > 1 else None
    if single:
        paths = [out.with_name(f"{out.stem}-{k}{out.suffix}") for k in range(count)] if sheet else [out]
    else:
        paths = [out / numbered(k, encoding.suffix) for k in range(count)]
    for path in (out, *paths):
        check_inputs_kept(path, image, mask)
    for given in (image, mask):
        if given is not None:
            check_input(given, "image")
    extend_by = None if extend is None else Extension.parse(extend)
    found = find_described_model(model_name)
    asked = asked_labels(found, classes)
    if asked is None:
        options["guidance"] = 1.0  # there is no class to be guided to
    settings = found.settings(preset, **options)
    if single:
        for path in dict.fromkeys([out, *paths]):
            gate.check_file(path)
    else:
        gate.check_images(out, count)

    from ggm_image.image.masks import load_mask
    from ggm_image.image.metadata import DROPPED
    from ggm_image.image.visualize import grid_size
    from ggm_image.io.files import sha256_file
    from ggm_image.pipelines.inpaint import TAU

    # a bad file should not wait for the model
    picture, hole = load_mask(image, mask, extend_by=extend_by, fit=fit, mask_index=mask_index)
    encoding.check_size(*picture.size)
    if sheet:
        height, width = grid_size(count + 1, *(side * _sheet_scale(picture) for side in picture.size[::-1]), gap=GAP)
        encoding.check_size(width, height)
    if dropped := picture.info.get(DROPPED):
        say(f"results do not keep {', '.join(dropped)} of {image}")
    model = load(model_name, tokenizer, device)
    labels = None if asked is None else turns(asked, range(count))
    samples = model.inpaint(
        picture,
        hole,
        n=count,
        classes=labels,
        seed=seed,
        settings=settings,
        dilate=dilate,
        feather=feather,
        context=context,
        scales=scales,
        tau=TAU if tau is None else tau,
    )
    plan = model.plan_inpainting(hole, context=context, scales=scales) if hole.any() else None
    windows = plan.windows if plan else []
    names = [model.class_names[label] for label in asked or ()]
    manifest = model.manifest(count, classes=labels, seed=seed, settings=settings) | {
        "classes": names if len(names) > 1 else next(iter(names), None),  # in turn
        "kernel_batch": model.paint_batch,
        "image": str(image),
        "image_sha256": sha256_file(image),
        "mask": None if mask is None else str(mask),
        "mask_sha256": None if mask is None else sha256_file(mask),
        "extend": extend,
        "fit": fit,
        "mask_index": mask_index,
        "dilate": dilate,
        "feather": feather,
        "context": context,
        "tau": (TAU if tau is None else tau) if plan and len(plan.scales) > 1 else None,
        "scales": [{"factor": scale.factor, "windows": len(scale.windows)} for scale in plan.scales] if plan else [],
        "size": list(picture.size),
        "hole_pixels": int(hole.sum()),
        "windows": [asdict(window) for window in windows],
        **encoding.described,
    }
    if lost := losses(samples[0], encoding):
        say(f"{encoding.format.name} files do not hold {', '.join(lost)}")
    if encoding.quality is not None:
        only = "PNG, TIFF and lossless WebP (--quality lossless)"
        say(f"{encoding.format.name} compression changes known pixels too; they are exact only in {only}")
    if single:
        for path, sample in zip(paths, samples, strict=True):
            gate.save(path, sample, manifest)
        if sheet:
            gate.save(sheet, _contact_sheet(picture, hole, samples), manifest)
    elif removed := gate.save_images(samples, out, manifest):
        say(f"removed {removed} images of the run before that are not part of this one: {out}")
    if as_json:
        print_json({"out": [str(path) for path in paths], "sheet": sheet and str(sheet), **manifest})
        return
    click.echo("\n".join(str(path) for path in ([sheet, *paths] if sheet else paths)))
    click.echo(_what_was_done(picture, hole, windows, 0 if plan is None else len(plan.scales)), err=True)


def _contact_sheet(image: Any, mask: Any, samples: list[Any]) -> Any:
    """The input with its hole in grey, and then the answers; small images are enlarged by a whole factor."""
    import torch

    from ggm_image.image.io import rgb_pixels, to_pil
    from ggm_image.image.visualize import image_grid

    shown = torch.stack([rgb_pixels(part) for part in (image, *samples)])
    shown[0][:, torch.from_numpy(mask)] = 128
    scale = _sheet_scale(image)
    shown = shown.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return to_pil(image_grid(shown, gap=GAP))


def _sheet_scale(image: Any) -> int:
    """The whole factor by which an image is enlarged on a contact sheet."""
    return max(1, -(-SHEET_SIDE // min(image.size)))


def _what_was_done(image: Any, mask: Any, windows: list[Any], scales: int) -> str:
    """One line: how much was painted, and in which windows of how many scales."""
    size = f"{image.width} x {image.height}"
    if not windows:
        return f"nothing to paint: the mask is black everywhere, so the result is the input, {size}"
    share = f"painted {mask.mean():.1%} of {size} pixels"
    if scales > 1:
        share += f" from coarse to fine, {scales} scales, the last one"
    first = windows[0]
    shape = f"{first.width} x {first.height}"
    if len(windows) > 1:
        return f"{share} in {len(windows)} overlapping windows of {shape}"
    if (first.width, first.height) == image.size:
        return share
    return f"{share} in one window of {shape} at left {first.left}, top {first.top}"
