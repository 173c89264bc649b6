"""The `sample` command."""

import json
from dataclasses import replace
from pathlib import Path
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
    seed_option,
    shard_option,
    what,
    where,
)
from ggm_image.cli.sampling import (
    COMPILE,
    asked_labels,
    check_input,
    find_described_model,
    format_options,
    load,
    model_options,
    output_encoding,
    sampler_options,
)
from ggm_image.cli.text import refuse_given, sample_texts
from ggm_image.errors import UserError
from ggm_image.io.image_formats import format_of
from ggm_image.io.outputs import Gate, check_inputs_kept
from ggm_image.pipelines.classes import turns
from ggm_image.runtime.streams import say


@click.command(cls=GroupedCommand)
@what(
    *model_options("Class to sample; several take turns."),
    count_option(16, "Number of images."),
    click.option(
        "--guide",
        type=click.Path(path_type=Path),
        metavar="IMAGE",
        help="Image that the samples follow, of any size: to enlarge or to vary, or colour hints on transparency.",
    ),
    click.option("--length", type=click.IntRange(min=1), help="Bytes of each text; the model's own length by default."),
)
@how(
    sampler_options,
    click.option(
        "--strength",
        type=click.FloatRange(min=0, min_open=True),
        help="How closely the samples follow --guide; larger is closer.  [default: 1]",
    ),
    seed_option,
    COMPILE,
    device_option,
    shard_option,
)
@where(
    out_option("samples.png", help="File for one image or a grid (.png, .jpg, .webp, .tif), or a folder."),
    format_options,
    click.option("--trajectory", type=click.Path(path_type=Path), help="Write the denoising steps as an animated GIF."),
    overwrite_option,
    json_option,
)
def sample(
    model_name: str,
    tokenizer: str | None,
    classes: tuple[str, ...],
    count: int,
    guide: Path | None,
    strength: float | None,
    out: Path,
    image_format: str | None,
    quality: int | str | None,
    length: int | None,
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

    --guide IMAGE makes the samples follow an image: a small one is enlarged (super-resolution), one of the model's size
    is varied, and strokes of colour on a transparent background are hints. The samples have no class then unless
    --class names one.

    Rerun the same command to resume an unfinished folder, or with a larger -n to add images. Several processes share a
    folder: those of torchrun, or one command with --shard 0/4, one with 1/4 ... The files are the same either way.

    A model of text prints its texts, or writes 000000.txt ... into --out DIR.

    A file or folder that `sample` did not write, or that holds other samples, is only replaced with --overwrite.
    """
    import time

    from ggm_image.runtime.ranks import rank_and_world_size

    found = find_described_model(model_name, None)
    if found.modality == "text":
        sample_texts(
            found,
            model_name,
            tokenizer,
            count=count,
            length=length,
            out=_folder_of_texts(click.get_current_context(), out),
            overwrite=overwrite,
            preset=preset,
            options=options,
            seed=seed,
            device=device,
            as_json=as_json,
        )
        return
    if length is not None:
        raise UserError("--length belongs to models of text", length, "leave it out: the model is one of images")
    # Refuse what can be refused before torch is imported and the model is loaded.
    share = rank_and_world_size(shard)
    single, encoding = output_encoding(out, image_format, quality)
    gate = Gate("sample", overwrite, encoding=encoding)
    _check_processes(share[1], out, single, overwrite)
    _check_trajectory(trajectory, gate)
    asked = asked_labels(found, classes)
    _check_guide(guide, strength, out, single)
    if guide is not None and asked is None:
        if options["guidance"] is not None:
            say("--guidance has no effect without --class")
        options["guidance"] = 1.0
    settings = found.settings(preset, **options)
    if single:
        gate.check_file(out)
    else:
        gate.check_images(out, count)

    model = load(model_name, tokenizer, device, compiled=compiled)
    followed = None
    if guide is not None:
        followed = model.encode_guide(guide) if strength is None else model.encode_guide(guide, strength)
    recording = None
    if trajectory is not None and share[0] == 0:
        from ggm_image.pipelines.trajectory import Trajectory

        recording = Trajectory(model)
    callback = None if recording is None else recording.record
    start = time.perf_counter()
    if single:
        _sample_grid(model, out, count, asked, seed, settings, callback, gate, followed)
        sampled, missing = count, 0
    else:
        from ggm_image.pipelines.sample_folder import sample_to_folder

        done = sample_to_folder(
            model,
            out,
            count,
            classes=asked,
            seed=seed,
            settings=settings,
            share=share,
            callback=callback,
            overwrite=overwrite,
            encoding=encoding,
            guide=followed,
        )
        sampled, missing = done.sampled, done.missing
    seconds = time.perf_counter() - start
    if recording is not None and trajectory is not None:
        recording.save(trajectory)
    if as_json:
        labels = None if asked is None else turns(asked, range(count))
        manifest = model.manifest(count, classes=labels, seed=seed, settings=settings, guide=followed)
        manifest |= encoding.described
        told = {"out": str(out), "seconds": round(seconds, 3), "drawn": sampled, "missing": missing}
        click.echo(json.dumps({**told, "share": f"{share[0]}/{share[1]}", **manifest}))
    else:
        _say_done(out, count, sampled, missing, share, settings.calls(model.grid[0] * model.grid[1]), seconds)


def _folder_of_texts(context: click.Context, out: Path) -> Path | None:
    """``--out`` of a model of text: a folder, or None where texts are printed.

    Raises:
        UserError: an option that only models of images have.
    """
    given = context.get_parameter_source("out") is click.core.ParameterSource.COMMANDLINE
    if given and format_of(out) is not None:
        raise UserError("--out of a model of text must be a folder", f"got {out}", "name it without a suffix")
    images_only = ("classes", "guide", "strength", "trajectory", "compiled", "shard", "image_format", "quality")
    refuse_given(context, dict.fromkeys(images_only, "leave it out: the model is one of text"))
    return out if given else None


def _check_processes(processes: int, out: Path, single: bool, overwrite: bool) -> None:
    if processes > 1 and (single or overwrite):
        what = "only a folder can be filled by several processes" if single else "--overwrite needs one process"
        fix = "give --out DIR" if single else "remove the folder, or choose another one"
        raise UserError(what, f"--out {out} and {processes} processes", fix)


def _check_trajectory(path: Path | None, gate: Gate) -> None:
    if path is None:
        return
    if path.suffix.lower() != ".gif":
        raise UserError("--trajectory must be a .gif file", f"got {path}", "name it X.gif")
    replace(gate, option="--trajectory").check_file(path)


def _check_guide(guide: Path | None, strength: float | None, out: Path, single: bool) -> None:
    if guide is not None:
        check_input(guide, "guide")
        check_inputs_kept(out if single else out / guide.name, guide)
    elif strength is not None:
        raise UserError("--strength belongs to --guide", strength, "add --guide IMAGE, or leave it out")


def _say_done(
    out: Path, count: int, sampled: int, missing: int, share: tuple[int, int], calls: int, seconds: float
) -> None:
    """What was sampled, in a line; and a second one while images are missing."""
    whose = f"share {share[0]}/{share[1]}, " if share[1] > 1 else ""
    images = "1 image" if count == 1 else f"{count} images"
    amount = images if sampled == count else f"{sampled} of {images} sampled"
    click.echo(f"{out}: {whose}{amount}, {calls} network calls each, {seconds:.1f} s")
    if missing:
        click.echo(f"{missing} images are missing; the process that samples the last one writes manifest.json")


def _sample_grid(
    model: Any,
    out: Path,
    count: int,
    asked: list[int] | None,
    seed: int,
    settings: Any,
    callback: Any,
    gate: Gate,
    guide: Any,
) -> None:
    """One image, or a grid of them."""
    from ggm_image.image.io import to_pil
    from ggm_image.image.visualize import grid_size, image_grid
    from ggm_image.pipelines.sample_folder import sample_rows
    from ggm_image.runtime.progress import progress_bar

    height, width = grid_size(count, *model.image_size)
    gate.encoding.check_size(width, height)
    with progress_bar(total=count, unit="img", label="sample") as advance:
        tokens = sample_rows(
            model,
            range(count),
            asked,
            guide=guide,
            seed=seed,
            settings=settings,
            callback=callback,
            on_batch=lambda done: advance(len(done)),
        )
    labels = None if asked is None else turns(asked, range(count))
    manifest = model.manifest(count, classes=labels, seed=seed, settings=settings, guide=guide)
    manifest["classes"] = None if asked is None else [model.class_names[label] for label in asked]  # in turn
    gate.save(out, to_pil(image_grid(model.decode(tokens))), manifest)
