"""The `inpaint` command."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from ggm_image.cli.options import (
    GroupedCommand,
    count_option,
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
    NumberOrWord,
    asked_labels,
    check_input,
    find_described_model,
    format_options,
    load,
    model_options,
    output_encoding,
    sampler_changes,
    sampler_options,
)
from ggm_image.io.image_formats import Encoding, losses
from ggm_image.io.outputs import Gate, check_inputs_kept, numbered
from ggm_image.pipelines.classes import turns
from ggm_image.runtime.streams import say

SHEET_SIDE = 128
"""Pixels to which the shorter side of an image is enlarged on a contact sheet."""
GAP = 4
"""Pixels between two images on it."""


@click.command(cls=GroupedCommand)
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("mask", type=click.Path(path_type=Path), required=False)
@what(
    *model_options("What the image shows; several take turns."),
    count_option(1, "Number of samples.", most=10_000),
    click.option("--extend", metavar="SIDE=PX,...", help="Extend the image, e.g. left=32,top=16."),
    click.option("--fit", is_flag=True, help="Resize a MASK of another size to the image."),
    click.option("--mask-index", type=click.IntRange(0, 65535), help="Palette index or grey value of MASK to inpaint."),
    click.option("--dilate", type=click.IntRange(min=0), default=0, help="Pixels to grow the mask by."),
)
@how(
    sampler_options,
    click.option(
        "--scales", type=NumberOrWord("auto", 64, "auto|N"), default="auto", help="Resolutions for a wide mask."
    ),
    click.option(
        "--tau",
        type=click.FloatRange(min=0, min_open=True),
        help="How far each scale may depart from the coarser one.  [default: 1]",
    ),
    click.option("--context", type=click.IntRange(min=0), help="Known pixels around the mask that the model sees."),
    click.option("--feather", type=click.IntRange(min=0), default=0, help="Pixels to blend over in the mask."),
    seed_option,
    device_option,
)
@where(
    out_option("inpainted.png", help="File for one sample or a contact sheet (.png, .jpg, .webp, .tif), or a folder."),
    format_options,
    overwrite_option,
    json_option,
)
def inpaint(image: Path, mask: Path | None, out: Path, **options: Any) -> None:
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

    given, changes = SimpleNamespace(**options), sampler_changes(options)
    single, encoding = output_encoding(out, given.image_format, given.quality)
    gate = Gate("inpaint", given.overwrite, encoding=encoding)
    files = _Files.of(out, given.count, single=single, suffix=encoding.suffix)
    for path in files.all:
        check_inputs_kept(path, image, mask)
    for path in filter(None, (image, mask)):
        check_input(path, "image")
    extend_by = None if given.extend is None else Extension.parse(given.extend)
    found = find_described_model(given.model_name)
    asked = asked_labels(found, given.classes)
    settings = found.settings(given.preset, **changes | ({"guidance": 1.0} if asked is None else {}))
    files.check(gate, given.count)

    from ggm_image.image.masks import load_mask
    from ggm_image.pipelines.inpaint import TAU

    # Open the image first: an unreadable one should not wait for the model to load.
    original, hole = load_mask(image, mask, extend_by=extend_by, fit=given.fit, mask_index=given.mask_index)
    _check_sizes(original, given.count, encoding, files)
    _say_dropped(original, image)
    model = load(given)
    classes = None if asked is None else turns(asked, range(given.count))
    run: dict[str, Any] = {"classes": classes, "seed": given.seed, "settings": settings}
    how_filled = {name: options[name] for name in ("dilate", "feather", "context")}
    tau = TAU if given.tau is None else given.tau
    samples = model.inpaint(original, hole, n=given.count, scales=given.scales, tau=tau, **run, **how_filled)
    plan = model.plan_inpainting(hole, context=given.context, scales=given.scales) if hole.any() else None
    names = [model.class_names[label] for label in asked or ()]
    manifest = model.manifest(given.count, **run) | {
        "classes": names if len(names) > 1 else next(iter(names), None),  # in turn
        "kernel_batch": model.paint_batch,
        **_described_inputs(image, mask),
        **{name: options[name] for name in ("extend", "fit", "mask_index", "dilate", "feather", "context")},
        **_described_plan(plan, tau),
        **{"size": list(original.size), "hole_pixels": int(hole.sum()), **encoding.described},
    }
    _say_losses(samples[0], encoding)
    files.save(gate, samples, manifest, lambda: _contact_sheet(original, hole, samples))
    if given.as_json:
        print_json({**files.described, **manifest})
    else:
        click.echo("\n".join(map(str, files.printed)))
        click.echo(_what_was_done(original, hole, plan), err=True)


@dataclass(frozen=True)
class _Files:
    """What ``--out`` stands for."""

    out: Path
    samples: list[Path]
    sheet: Path | None
    folder: bool

    @classmethod
    def of(cls, out: Path, count: int, *, single: bool, suffix: str) -> "_Files":
        if not single:
            return cls(out, [out / numbered(k, suffix) for k in range(count)], None, True)
        if count == 1:
            return cls(out, [out], None, False)
        return cls(out, [out.with_name(f"{out.stem}-{k}{out.suffix}") for k in range(count)], out, False)

    @property
    def all(self) -> list[Path]:
        return list(dict.fromkeys([self.out, *self.samples]))

    @property
    def printed(self) -> list[Path]:
        """The files of the run, in the order in which they are printed."""
        return [self.sheet, *self.samples] if self.sheet else self.samples

    @property
    def described(self) -> dict[str, Any]:
        """The same for ``--json``."""
        return {"out": [str(path) for path in self.samples], "sheet": self.sheet and str(self.sheet)}

    def check(self, gate: Gate, count: int) -> None:
        """Raise UserError where something else lies in the way."""
        if self.folder:
            gate.check_images(self.out, count)
            return
        for path in self.all:
            gate.check_file(path)

    def save(self, gate: Gate, samples: list[Any], manifest: dict[str, Any], sheet: Callable[[], Any]) -> None:
        if self.folder:
            if removed := gate.save_images(samples, self.out, manifest):
                say(f"removed {removed} images of the previous run that are not part of this one: {self.out}")
            return
        for path, sample in zip(self.samples, samples, strict=True):
            gate.save(path, sample, manifest)
        if self.sheet is not None:
            gate.save(self.sheet, sheet(), manifest)


def _check_sizes(image: Any, count: int, encoding: Encoding, files: _Files) -> None:
    """Raise UserError if the results, or the contact sheet, are too large for their format."""
    from ggm_image.image.visualize import grid_size

    encoding.check_size(*image.size)
    if files.sheet:
        height, width = grid_size(count + 1, *(side * _sheet_scale(image) for side in image.size[::-1]), gap=GAP)
        encoding.check_size(width, height)


def _described_inputs(image: Path, mask: Path | None) -> dict[str, Any]:
    """The files that were read, for the manifest."""
    from ggm_image.io.files import sha256_file

    return {
        "image": str(image),
        "image_sha256": sha256_file(image),
        "mask": None if mask is None else str(mask),
        "mask_sha256": None if mask is None else sha256_file(mask),
    }


def _described_plan(plan: Any, tau: float) -> dict[str, Any]:
    """Scales and windows, for the manifest; ``plan`` is None where the mask is black everywhere."""
    scales = plan.scales if plan else []
    return {
        "tau": tau if len(scales) > 1 else None,  # one scale has no coarser one to depart from
        "scales": [{"factor": scale.factor, "windows": len(scale.windows)} for scale in scales],
        "windows": [asdict(window) for window in plan.windows] if plan else [],
    }


def _say_dropped(original: Any, path: Path) -> None:
    """Say which metadata of the input the results do not keep."""
    from ggm_image.image.metadata import DROPPED

    if dropped := original.info.get(DROPPED):
        say(f"results do not keep {', '.join(dropped)} of {path}")


def _say_losses(sample: Any, encoding: Encoding) -> None:
    """Say what the file format does not keep of the samples."""
    if lost := losses(sample, encoding):
        say(f"{encoding.format.name} files do not hold {', '.join(lost)}")
    if encoding.quality is not None:
        only = "PNG, TIFF and lossless WebP (--quality lossless)"
        say(f"{encoding.format.name} compression changes known pixels too; they are exact only in {only}")


def _contact_sheet(image: Any, mask: Any, samples: list[Any]) -> Any:
    """The input with its hole in grey, then the samples; small images are enlarged by a whole factor."""
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


def _what_was_done(image: Any, mask: Any, plan: Any) -> str:
    """One line: how much was painted, and in which windows of how many scales."""
    size = f"{image.width} x {image.height}"
    if plan is None:
        return f"nothing to paint: the mask is black everywhere, so the result is the input, {size}"
    share = f"painted {mask.mean():.1%} of {size} pixels"
    if len(plan.scales) > 1:
        share += f" from coarse to fine, {len(plan.scales)} scales, the last one"
    windows = plan.windows
    first = windows[0]
    shape = f"{first.width} x {first.height}"
    if len(windows) > 1:
        return f"{share} in {len(windows)} overlapping windows of {shape}"
    if (first.width, first.height) == image.size:
        return share
    return f"{share} in one window of {shape} at left {first.left}, top {first.top}"
