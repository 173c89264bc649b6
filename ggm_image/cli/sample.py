"""The `sample` command."""

import json
from dataclasses import replace
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
    seed_option,
    shard_option,
    what,
    where,
)
from ggm_image.cli.sampling import (
    COMPILE,
    asked_labels,
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
from ggm_image.io.outputs import Gate
from ggm_image.pipelines.classes import turns


@click.command(cls=GroupedCommand)
@what(
    *model_options("Class to sample; several take turns."),
    click.option("-n", "count", type=click.IntRange(min=1), default=16, show_default=True, help="Number of images."),
    click.option(
        "--length", type=click.IntRange(min=1), help="Tokens of each text; the model's own length by default."
    ),
)
@how(sampler_options, seed_option, COMPILE, device_option, shard_option)
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

    Rerun the same command to resume an unfinished folder, or with a larger -n to add images. Several processes share a
    folder: those of torchrun, or one command with --shard 0/4, one with 1/4 ... The files are the same either way.

    A model of text prints its texts, or writes 000000.txt ... into --out DIR.

    A file or folder that `sample` did not write, or that holds other samples, is only replaced with --overwrite.
    """
    import time

    from ggm_image.runtime.ranks import rank_and_world_size

    found = find_described_model(model_name, None)
    if found.modality == "text":
        context = click.get_current_context()
        given = context.get_parameter_source("out") is click.core.ParameterSource.COMMANDLINE
        if given and format_of(out) is not None:
            raise UserError("--out of a model of text must be a folder", f"got {out}", "name it without a suffix")
        fix = "leave it out: the model is one of text"
        refuse_given(
            context, dict.fromkeys(("classes", "trajectory", "compiled", "shard", "image_format", "quality"), fix)
        )
        sample_texts(
            found,
            model_name,
            tokenizer,
            count=count,
            length=length,
            out=out if given else None,
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
    rank, processes = rank_and_world_size(shard)
    single, encoding = output_encoding(out, image_format, quality)
    gate = Gate("sample", overwrite, encoding=encoding)
    if processes > 1 and (single or overwrite):
        what = "only a folder can be filled by several processes" if single else "--overwrite needs one process"
        fix = "give --out DIR" if single else "remove the folder, or choose another one"
        raise UserError(what, f"--out {out} and {processes} processes", fix)
    if trajectory is not None:
        if trajectory.suffix.lower() != ".gif":
            raise UserError("--trajectory must be a .gif file", f"got {trajectory}", "name it X.gif")
        replace(gate, option="--trajectory").check_file(trajectory)
    settings, asked = found.settings(preset, **options), asked_labels(found, classes)
    if single:
        gate.check_file(out)
    else:
        gate.check_images(out, count)

    model = load(model_name, tokenizer, device, compiled=compiled)
    recording = None
    if trajectory is not None and rank == 0:
        from ggm_image.pipelines.trajectory import Trajectory

        recording = Trajectory(model)
    callback = None if recording is None else recording.record
    start = time.perf_counter()
    if single:
        _draw_grid(model, out, count, asked, seed, settings, callback, gate)
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
            share=(rank, processes),
            callback=callback,
            overwrite=overwrite,
            encoding=encoding,
        )
        sampled, missing = done.drawn, done.missing
    seconds = time.perf_counter() - start
    if recording is not None and trajectory is not None:
        recording.save(trajectory)
    if as_json:
        labels = None if asked is None else turns(asked, range(count))
        manifest = model.manifest(count, classes=labels, seed=seed, settings=settings) | encoding.described
        told = {"out": str(out), "seconds": round(seconds, 3), "drawn": sampled, "missing": missing}
        click.echo(json.dumps({**told, "share": f"{rank}/{processes}", **manifest}))
        return
    calls = settings.calls(model.grid[0] * model.grid[1])
    whose = f"share {rank}/{processes}, " if processes > 1 else ""
    images = "1 image" if count == 1 else f"{count} images"
    amount = images if sampled == count else f"{sampled} of {images} sampled"
    click.echo(f"{out}: {whose}{amount}, {calls} network calls each, {seconds:.1f} s")
    if missing:
        click.echo(f"{missing} images are missing; the process that samples the last one writes manifest.json")


def _draw_grid(
    model: Any, out: Path, count: int, asked: list[int] | None, seed: int, settings: Any, callback: Any, gate: Gate
) -> None:
    """One image, or a grid of them."""
    from ggm_image.image.io import to_pil
    from ggm_image.image.visualize import grid_size, image_grid
    from ggm_image.runtime.progress import progress_bar

    height, width = grid_size(count, *model.image_size)
    gate.encoding.check_size(width, height)
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
