"""Commands that draw: sample, inpaint, signal; and what there is to draw with: models."""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ggm_image.cli.options import (
    device_option,
    json_option,
    own_device,
    print_json,
    seed_option,
    share_option,
)
from ggm_image.errors import UserError

SHEET_SIDE = 128
"""Pixels to which the shorter side of a picture is enlarged on a contact sheet."""

MODEL = click.option("--model", "model_name", default="cifar10", show_default=True, help="Shipped name or folder.")
PRESET = click.option(
    "--preset",
    default="best",
    show_default=True,
    help="fast, best or exact (the paper's chain, no truncation).",
)

COMPILE = click.option("--compile", "compiled", is_flag=True, help="Compile the network: for many pictures.")
TOKENIZER = click.option("--tokenizer", metavar="NAME|DIR", help="The model's tokenizer, where it has moved.")


def sampler_options(command: Any) -> Any:
    """The sampler's settings; what is left out is the preset's."""
    for option in reversed(
        [
            PRESET,
            click.option("--order", type=click.Choice(["schedule", "signal"]), help="How the next block is chosen."),
            click.option("--sweeps", type=click.IntRange(min=1), help="Visits of every site."),
            click.option("--block", type=click.IntRange(min=1), help="Sites resampled in one network call."),
            click.option("--guidance", type=float, help="Guidance weight, in the end where it grows; 1 is off."),
            click.option(
                "--guidance-power",
                type=click.FloatRange(min=0),
                help="Let it grow with the picture: 1 linearly, 0 not.",
            ),
            click.option("--temperature", type=click.FloatRange(min=0, min_open=True), help="1 is off."),
            click.option("--top-k", type=click.IntRange(min=1), help="Keep the K likeliest codes."),
            click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Keep this much probability."),
        ]
    ):
        command = option(command)
    return command


def _settings(model: Any, preset: str, options: dict[str, Any]) -> Any:
    names = ("order", "sweeps", "block", "guidance", "guidance_power", "temperature", "top_k", "top_p")
    return model.settings(preset, **{name: options[name] for name in names})


def _load(model_name: str, tokenizer: str | None, device: str | None, *, compiled: bool = False) -> Any:
    from ggm_image.pipeline import load_model

    return load_model(model_name, tokenizer=tokenizer, device=own_device(device), compiled=compiled)


def _is_picture(path: Path) -> bool:
    """Whether ``--out`` names one picture rather than a folder."""
    if path.suffix.lower() == ".png" and not path.is_dir():
        return True
    if path.suffix and not path.is_dir():
        raise UserError("--out must be a .png file or a folder", f"got {path}", "name it X.png, or without a suffix")
    return False


def _keep_inputs(out: Path, *inputs: Path | None) -> None:
    """Raise UserError if ``out`` is one of the files that are read."""
    for path in inputs:
        if path is not None and out.exists() and path.exists() and out.samefile(path):
            raise UserError(
                "--out must not be an input", f"got {out}", "choose another name: inputs are never written over"
            )


@click.command()
@MODEL
@TOKENIZER
@click.option("--class", "classes", metavar="NAME|INDEX", help="Class of all pictures; each class in turn by default.")
@click.option("-n", "count", type=click.IntRange(min=1), default=16, show_default=True, help="How many pictures.")
@click.option("--out", type=click.Path(path_type=Path), default="samples.png", show_default=True)
@sampler_options
@click.option("--trajectory", type=click.Path(path_type=Path), help="Write the denoising as an animated GIF.")
@COMPILE
@share_option
@seed_option
@device_option
@json_option
def sample(
    model_name: str,
    tokenizer: str | None,
    classes: str | None,
    count: int,
    out: Path,
    preset: str,
    trajectory: Path | None,
    compiled: bool,
    shard: str | None,
    seed: int,
    device: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Draw pictures. --out X.png is one picture or a grid, --out DIR single files with a manifest.

    Into a folder an interrupted run goes on where it stopped, and several processes share the work: those of torchrun,
    or one command with --shard 0/4, one with 1/4 ... The files are the same, whoever draws them.
    """
    import time

    from ggm_image.processes import share

    rank, processes = share(shard)
    single = _is_picture(out)
    if single and processes > 1:
        raise UserError(
            "only a folder can be filled by several processes",
            f"--out {out} and {processes} processes",
            "give --out DIR",
        )
    if trajectory is not None and trajectory.suffix.lower() != ".gif":
        raise UserError("--trajectory must be a .gif file", f"got {trajectory}", "name it X.gif")
    model = _load(model_name, tokenizer, device, compiled=compiled)
    settings = _settings(model, preset, options)
    recording = None
    if trajectory is not None and rank == 0:
        from ggm_image.trajectory import Trajectory

        recording = Trajectory(model)
    callback = None if recording is None else recording.record
    start = time.perf_counter()
    if single:
        _draw_grid(model, out, count, classes, seed, settings, callback)
        drawn, missing = count, 0
    else:
        from ggm_image.picture_folder import draw_folder

        done = draw_folder(
            model,
            out,
            count,
            classes=classes,
            seed=seed,
            settings=settings,
            share=(rank, processes),
            callback=callback,
        )
        drawn, missing = done.drawn, done.missing
    seconds = time.perf_counter() - start
    if recording is not None and trajectory is not None:
        recording.save(trajectory)
    if as_json:
        manifest = model.manifest(count, classes=classes, seed=seed, settings=settings)
        told = {"out": str(out), "seconds": round(seconds, 3), "drawn": drawn, "missing": missing}
        click.echo(json.dumps({**told, "share": f"{rank}/{processes}", **manifest}))
        return
    calls = settings.calls(model.grid[0] * model.grid[1])
    whose = f"share {rank}/{processes}, " if processes > 1 else ""
    amount = f"{count} pictures" if drawn == count else f"{drawn} of {count} pictures drawn"
    click.echo(f"{out}: {whose}{amount}, {calls} network calls each, {seconds:.1f} s")
    if missing:
        click.echo(f"{missing} pictures are not there yet; whoever draws the last writes manifest.json")


def _draw_grid(model: Any, out: Path, count: int, classes: str | None, seed: int, settings: Any, callback: Any) -> None:
    """One picture, or a grid of them."""
    from ggm_image.data.images import image_grid, save_png
    from ggm_image.files import progress_bar

    with progress_bar(total=count, unit="img", label="sample") as advance:
        tokens = model.sample_tokens(
            model.labels(count, classes),
            seed=seed,
            settings=settings,
            callback=callback,
            on_batch=lambda done: advance(len(done)),
        )
    save_png(image_grid(model.decode(tokens)), out)


def _save_folder(pictures: Iterable[Any], out: Path, manifest: dict[str, Any]) -> None:
    """Write 000000.png ... and then the manifest: a folder with a manifest is complete."""
    from ggm_image.files import remove_temporaries, write_json
    from ggm_image.picture_folder import numbered

    out.mkdir(parents=True, exist_ok=True)
    remove_temporaries(out)
    (out / "manifest.json").unlink(missing_ok=True)
    for k, picture in enumerate(pictures):
        _save(picture, out / numbered(k))
    write_json(out / "manifest.json", manifest)


@click.command()
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("mask", type=click.Path(path_type=Path), required=False)
@click.option("--out", type=click.Path(path_type=Path), default="inpainted.png", show_default=True)
@MODEL
@TOKENIZER
@click.option("--class", "classes", metavar="NAME|INDEX", help="What the picture shows; no class by default.")
@click.option("-n", "count", type=click.IntRange(1, 10_000), default=1, show_default=True, help="How many answers.")
@click.option("--dilate", type=click.IntRange(min=0), default=0, show_default=True, help="Grow the mask, in pixels.")
@click.option("--feather", type=click.IntRange(min=0), default=0, show_default=True, help="Blend inside it, in pixels.")
@click.option("--extend", metavar="SIDE=PX,...", help="Paint beyond the picture, e.g. left=32,top=16.")
@click.option("--context", type=click.IntRange(min=0), help="Known pixels to show the model around the hole.")
@click.option("--fit", is_flag=True, help="Stretch a MASK of another size to the picture's.")
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
    model_name: str,
    tokenizer: str | None,
    classes: str | None,
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
    """Paint the white part of MASK anew; every other pixel of IMAGE stays as it is, bit for bit.

    An IMAGE with transparent parts needs no MASK; a MASK larger than IMAGE, or --extend, paints beyond it. With -n the
    answers go to OUT-0.png, OUT-1.png ... and OUT shows them side by side after the input; into a folder OUT they go
    as single files with a manifest.
    """
    from ggm_image.canvas import Extension
    from ggm_image.files import sha256_file
    from ggm_image.inpaint import load_mask
    from ggm_image.picture_folder import numbered

    single = _is_picture(out)
    sheet = out if single and count > 1 else None
    if single:
        paths = [out.with_name(f"{out.stem}-{k}.png") for k in range(count)] if sheet else [out]
    else:
        paths = [out / numbered(k) for k in range(count)]
    for path in (out, *paths):
        _keep_inputs(path, image, mask)
    extend_by = None if extend is None else Extension.parse(extend)
    picture, hole = load_mask(
        image, mask, extend_by=extend_by, fit=fit, mask_index=mask_index
    )  # before the model is loaded
    model = _load(model_name, tokenizer, device)
    if classes is None:
        options["guidance"] = 1.0  # there is no class to be guided to
    settings = _settings(model, preset, options)
    answers = model.inpaint(
        picture,
        hole,
        n=count,
        classes=classes,
        seed=seed,
        settings=settings,
        dilate=dilate,
        feather=feather,
        context=context,
    )
    windows = model.plan_windows(hole, context) if hole.any() else []
    manifest = model.manifest(count, classes=classes, seed=seed, settings=settings) | {
        "classes": classes,
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
            _save(answer, path)
        if sheet:
            _save(_contact_sheet(picture, hole, answers), sheet)
    else:
        _save_folder(answers, out, manifest)
    if as_json:
        print_json({"out": [str(path) for path in paths], "sheet": sheet and str(sheet), **manifest})
        return
    click.echo("\n".join(str(path) for path in ([sheet, *paths] if sheet else paths)))
    click.echo(_what_was_done(picture, hole, windows), err=True)


def _save(picture: Any, path: Path) -> None:
    from ggm_image.files import atomic_path

    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG")


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
@MODEL
@TOKENIZER
@click.option("--class", "classes", metavar="NAME|INDEX", help="What the picture shows; no class by default.")
@click.option(
    "--level",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.9,
    show_default=True,
    help="Share of the tokens that you expect to be signal.",
)
@click.option("--block", type=click.IntRange(min=1), default=4, show_default=True, help="Tokens judged in one call.")
@click.option("--seed", type=click.IntRange(0), default=0, help="Accepted everywhere; judging draws nothing.")
@device_option
@json_option
def signal(
    image: Path,
    out: Path,
    model_name: str,
    tokenizer: str | None,
    classes: str | None,
    level: float,
    block: int,
    seed: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Show which parts of IMAGE look like noise: the model's own probability of signal, token by token.

    --out is the picture, and beside it a map: the stronger the red, the less a token looks like signal.
    """
    from ggm_image.inpaint import open_picture
    from ggm_image.signal_map import heat_map

    if not _is_picture(out):
        raise UserError("--out must be a .png file", f"got {out}", "name it X.png")
    _keep_inputs(out, image)
    model = _load(model_name, tokenizer, device)
    probability = model.signal(image, level=level, block=block, classes=classes)
    _save(heat_map(open_picture(image), probability, model.tokenizer.downscale), out)
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


@click.command()
@json_option
def models(as_json: bool) -> None:
    """List the models that are shipped: size, tokenizer, classes."""
    from ggm_image.model_files import shipped_models

    rows = [
        {
            "name": m.name,
            "grid": list(m.network.grid),
            "classes": len(m.class_names),
            "tokenizer": m.tokenizer_name,
            "megabytes": round(m.weights.stat().st_size / 1e6, 1) if m.weights.is_file() else None,
            "presets": sorted(m.presets),
            "folder": str(m.folder),
        }
        for m in shipped_models()
    ]
    _list(rows, as_json)


def _list(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(rows))
        return
    for row in rows:
        name = row.pop("name")
        click.echo(name)
        for key, value in row.items():
            shown = "not on disk" if value is None else value
            if isinstance(value, list):
                shown = " x ".join(map(str, value)) if key == "grid" else ", ".join(map(str, value))
            elif isinstance(value, dict):
                shown = ", ".join(f"{k} {v}" for k, v in value.items())
            click.echo(f"  {key.replace('_', ' '):<12} {shown}")
