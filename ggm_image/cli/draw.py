"""Commands that sample: sample, inpaint; and signal, which judges.

What can be refused is refused before torch is imported: names, classes, settings, and outputs that are somebody's.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from ggm_image.classes import turns
from ggm_image.cli.options import (
    SEED,
    device_option,
    json_option,
    overwrite_option,
    print_json,
    seed_option,
    share_option,
)
from ggm_image.cli.sampling import (
    COMPILE,
    MODEL,
    TOKENIZER,
    asked_labels,
    class_option,
    find_described_model,
    load,
    sampler_options,
)
from ggm_image.errors import UserError
from ggm_image.files import check_plain
from ggm_image.outputs import Gate, check_inputs_kept, numbered
from ggm_image.streams import say

SHEET_SIDE = 128
"""Pixels to which the shorter side of an image is enlarged on a contact sheet."""


def _is_image(path: Path) -> bool:
    """Whether ``--out`` names one image rather than a folder."""
    if path.suffix.lower() == ".png" and not path.is_dir():
        return True
    if path.suffix and not path.is_dir():
        raise UserError("--out must be a .png file or a folder", f"got {path}", "name it X.png, or without a suffix")
    return False


def _check_input(path: Path, what: str) -> None:
    """Raise UserError unless a file can be opened; its content is looked at later."""
    try:
        check_plain(path)
        with open(path, "rb"):
            pass
    except OSError as error:
        raise UserError(f"{what} cannot be opened", f"{path}: {error.strerror}", "check the file") from error


@click.command()
@MODEL
@TOKENIZER
@class_option("Class to sample; several take turns.")
@click.option("-n", "count", type=click.IntRange(min=1), default=16, show_default=True, help="How many images.")
@click.option("--out", type=click.Path(path_type=Path), default="samples.png", show_default=True)
@overwrite_option
@sampler_options
@click.option("--trajectory", type=click.Path(path_type=Path), help="Write the denoising steps as an animated GIF.")
@COMPILE
@share_option
@seed_option
@device_option
@json_option
def sample(
    model_name: str,
    tokenizer: str | None,
    classes: tuple[str, ...],
    count: int,
    out: Path,
    overwrite: bool,
    preset: str,
    trajectory: Path | None,
    compiled: bool,
    shard: str | None,
    seed: int,
    device: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Sample images. --out X.png is one image or a grid, --out DIR single files with a manifest.

    --class may be given several times, or as a list with commas: with K classes, image k gets class k mod K. Without
    it, all classes of the model take turns.

    Rerun the same command to resume an unfinished folder, or with a larger -n to add images. Several processes share a
    folder: those of torchrun, or one command with --shard 0/4, one with 1/4 ... The files are the same either way.

    A file or folder that `sample` did not write, or that holds other samples, is only replaced with --overwrite.
    """
    import time

    from ggm_image.processes import share

    rank, processes = share(shard)
    single, gate = _is_image(out), Gate("sample", overwrite)
    if processes > 1 and (single or overwrite):
        what = "only a folder can be filled by several processes" if single else "--overwrite needs one process"
        fix = "give --out DIR" if single else "remove the folder, or choose another one"
        raise UserError(what, f"--out {out} and {processes} processes", fix)
    if trajectory is not None:
        if trajectory.suffix.lower() != ".gif":
            raise UserError("--trajectory must be a .gif file", f"got {trajectory}", "name it X.gif")
        replace(gate, option="--trajectory").check_file(trajectory)
    found = find_described_model(model_name)
    settings, asked = found.settings(preset, **options), asked_labels(found, classes)
    if single:
        gate.check_file(out)
    else:
        gate.check_images(out, count)

    model = load(model_name, tokenizer, device, compiled=compiled)
    recording = None
    if trajectory is not None and rank == 0:
        from ggm_image.trajectory import Trajectory

        recording = Trajectory(model)
    callback = None if recording is None else recording.record
    start = time.perf_counter()
    if single:
        _draw_grid(model, out, count, asked, seed, settings, callback, gate)
        drawn, missing = count, 0
    else:
        from ggm_image.picture_folder import draw_folder

        done = draw_folder(
            model,
            out,
            count,
            classes=asked,
            seed=seed,
            settings=settings,
            share=(rank, processes),
            callback=callback,
            overwrite=overwrite,
        )
        drawn, missing = done.drawn, done.missing
    seconds = time.perf_counter() - start
    if recording is not None and trajectory is not None:
        recording.save(trajectory)
    if as_json:
        labels = None if asked is None else turns(asked, range(count))
        manifest = model.manifest(count, classes=labels, seed=seed, settings=settings)
        told = {"out": str(out), "seconds": round(seconds, 3), "drawn": drawn, "missing": missing}
        click.echo(json.dumps({**told, "share": f"{rank}/{processes}", **manifest}))
        return
    calls = settings.calls(model.grid[0] * model.grid[1])
    whose = f"share {rank}/{processes}, " if processes > 1 else ""
    images = "1 image" if count == 1 else f"{count} images"
    amount = images if drawn == count else f"{drawn} of {images} sampled"
    click.echo(f"{out}: {whose}{amount}, {calls} network calls each, {seconds:.1f} s")
    if missing:
        click.echo(f"{missing} images are missing; the process that samples the last one writes manifest.json")


def _draw_grid(
    model: Any, out: Path, count: int, asked: list[int] | None, seed: int, settings: Any, callback: Any, gate: Gate
) -> None:
    """One image, or a grid of them."""
    from ggm_image.data.images import image_grid, to_pil
    from ggm_image.files import progress_bar

    labels = None if asked is None else turns(asked, range(count))
    with progress_bar(total=count, unit="img", label="sample") as advance:
        tokens = model.sample_tokens(
            model.labels(count, labels),
            seed=seed,
            settings=settings,
            callback=callback,
            on_batch=lambda done: advance(len(done)),
        )
    manifest = model.manifest(count, classes=labels, seed=seed, settings=settings)
    manifest["classes"] = None if asked is None else [model.class_names[label] for label in asked]  # in turn
    gate.save(out, to_pil(image_grid(model.decode(tokens))), manifest)


@click.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("mask", type=click.Path(path_type=Path), required=False)
@click.option("--out", type=click.Path(path_type=Path), default="inpainted.png", show_default=True)
@overwrite_option
@MODEL
@TOKENIZER
@class_option("What it shows; several take turns.")
@click.option("-n", "count", type=click.IntRange(1, 10_000), default=1, show_default=True, help="How many samples.")
@click.option("--dilate", type=click.IntRange(min=0), default=0, show_default=True, help="Grow the mask, in pixels.")
@click.option("--feather", type=click.IntRange(min=0), default=0, show_default=True, help="Blend inside it, in pixels.")
@click.option("--extend", metavar="SIDE=PX,...", help="Extend the image, e.g. left=32,top=16.")
@click.option("--context", type=click.IntRange(min=0), help="Known pixels around the hole that the model sees.")
@click.option("--fit", is_flag=True, help="Resize a MASK of another size to the image.")
@click.option(
    "--mask-index", type=click.IntRange(0, 65535), help="Paint where MASK has this palette index or grey value."
)
@sampler_options
@seed_option
@device_option
@json_option
def inpaint(
    image: Path,
    mask: Path | None,
    out: Path,
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

    A file or folder that `inpaint` did not write is only replaced with --overwrite; inputs never are.
    """
    from ggm_image.extension import Extension

    single, gate = _is_image(out), Gate("inpaint", overwrite)
    sheet = out if single and count > 1 else None
    if single:
        paths = [out.with_name(f"{out.stem}-{k}.png") for k in range(count)] if sheet else [out]
    else:
        paths = [out / numbered(k) for k in range(count)]
    for path in (out, *paths):
        check_inputs_kept(path, image, mask)
    for given, what in ((image, "picture"), (mask, "picture")):
        if given is not None:
            _check_input(given, what)
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

    from ggm_image.files import sha256_file
    from ggm_image.inpaint import load_mask

    # a bad file should not wait for the model
    picture, hole = load_mask(image, mask, extend_by=extend_by, fit=fit, mask_index=mask_index)
    model = load(model_name, tokenizer, device)
    labels = None if asked is None else turns(asked, range(count))
    answers = model.inpaint(
        picture,
        hole,
        n=count,
        classes=labels,
        seed=seed,
        settings=settings,
        dilate=dilate,
        feather=feather,
        context=context,
    )
    windows = model.plan_windows(hole, context) if hole.any() else []
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
        "size": list(picture.size),
        "hole_pixels": int(hole.sum()),
        "windows": [asdict(window) for window in windows],
    }
    if single:
        for path, answer in zip(paths, answers, strict=True):
            gate.save(path, answer, manifest)
        if sheet:
            gate.save(sheet, _contact_sheet(picture, hole, answers), manifest)
    elif removed := gate.save_images(answers, out, manifest):
        say(f"removed {removed} images of the run before, which had more: {out}")
    if as_json:
        print_json({"out": [str(path) for path in paths], "sheet": sheet and str(sheet), **manifest})
        return
    click.echo("\n".join(str(path) for path in ([sheet, *paths] if sheet else paths)))
    click.echo(_what_was_done(picture, hole, windows), err=True)
    # such a window is sampled from other samples only, and a row of them turns into texture
    if blind := sum(bool(hole[window.slices].all()) for window in windows if len(windows) > 1):
        shape = f"{windows[0].width} x {windows[0].height}"
        what = f"{blind} of {len(windows)} windows lie wholly inside the hole"
        say(f"note: {what}; for a coherent result reduce image and mask until {shape} pixels span the hole")


def _contact_sheet(picture: Any, hole: Any, answers: list[Any]) -> Any:
    """The input with its hole in grey, and then the answers; small pictures are enlarged by a whole factor."""
    import torch

    from ggm_image.data.images import image_grid, rgb_pixels, to_pil

    shown = torch.stack([rgb_pixels(part) for part in (picture, *answers)])
    shown[0][:, torch.from_numpy(hole)] = 128
    scale = max(1, -(-SHEET_SIDE // min(picture.size)))
    shown = shown.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return to_pil(image_grid(shown, gap=4))


def _what_was_done(picture: Any, hole: Any, windows: list[Any]) -> str:
    """One line: how much was painted, and in which windows."""
    size = f"{picture.width} x {picture.height}"
    if not windows:
        return f"nothing to paint: the mask is black everywhere, so the result is the input, {size}"
    share = f"painted {hole.mean():.1%} of {size} pixels"
    first = windows[0]
    shape = f"{first.width} x {first.height}"
    if len(windows) > 1:
        return f"{share} in {len(windows)} overlapping windows of {shape}"
    if (first.width, first.height) == picture.size:
        return share
    return f"{share} in one window of {shape} at left {first.left}, top {first.top}"


@click.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default="signal.png", show_default=True)
@overwrite_option
@MODEL
@TOKENIZER
@class_option("What the image shows; no class by default.")
@click.option(
    "--level",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.9,
    show_default=True,
    help="Share of the tokens that you expect to be signal.",
)
@click.option("--block", type=click.IntRange(min=1), default=4, show_default=True, help="Tokens judged in one call.")
@click.option("--seed", type=SEED, default=0, help="Ignored: this command is deterministic.")
@device_option
@json_option
def signal(
    image: Path,
    out: Path,
    overwrite: bool,
    model_name: str,
    tokenizer: str | None,
    classes: tuple[str, ...],
    level: float,
    block: int,
    seed: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Show which parts of IMAGE look like noise: the model's own probability of signal, token by token.

    --out is the image with a map beside it: the stronger the red, the less a token looks like signal.
    """
    if not _is_image(out):
        raise UserError("--out must be a .png file", f"got {out}", "name it X.png")
    check_inputs_kept(out, image)
    _check_input(image, "picture")
    asked = asked_labels(find_described_model(model_name), classes)
    if asked is not None and len(asked) > 1:
        raise UserError("signal takes one class", ", ".join(classes), "give one, or none")
    gate = Gate("signal", overwrite)
    gate.check_file(out)

    from ggm_image.inpaint import open_picture
    from ggm_image.signal_map import heat_map

    model = load(model_name, tokenizer, device)
    probability = model.signal(image, level=level, block=block, classes=None if asked is None else asked[0])
    details = {"model": model.name, **model.identity, "image": str(image), "level": level, "block": block}
    gate.save(out, heat_map(open_picture(image), probability, model.tokenizer.downscale), details)
    if as_json:
        print_json(
            {
                "image": str(image),
                "out": str(out),
                "model": model.name,
                "level": level,
                "cell": model.tokenizer.downscale,
                "signal": [[round(p, 4) for p in row] for row in probability.tolist()],
            }
        )
        return
    least = probability.flatten().argsort()[:3].tolist()
    columns = probability.shape[1]
    shown = ", ".join(f"row {k // columns} column {k % columns}: {probability.flatten()[k]:.2f}" for k in least)
    click.echo(f"{out}: mean {probability.mean():.2f}; least signal at {shown}")
