"""The `sample` command."""

import json
import time
from dataclasses import replace
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
    sampler_changes,
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
    click.option(
        "--length", type=click.IntRange(min=1), help="Tokens of each text; the model's own length by default."
    ),
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
def sample(out: Path, **options: Any) -> None:
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
    from ggm_image.runtime.ranks import rank_and_world_size

    given, changes = SimpleNamespace(**options), sampler_changes(options)
    found = find_described_model(given.model_name, None)
    if found.modality == "text":
        sample_texts(found, _folder_of_texts(click.get_current_context(), out), given, changes)
        return
    if given.length is not None:
        fix = "leave it out: the model is one of images"
        raise UserError("--length belongs to models of text", given.length, fix)
    # Refuse what can be refused before torch is imported and the model is loaded.
    share = rank_and_world_size(given.shard)
    single, encoding = output_encoding(out, given.image_format, given.quality)
    gate = Gate("sample", given.overwrite, encoding=encoding)
    _check_processes(share[1], out, single, given.overwrite)
    _check_trajectory(given.trajectory, gate)
    asked = asked_labels(found, given.classes)
    _check_guide(given.guide, given.strength, out, single)
    if given.guide is not None and asked is None:
        if changes["guidance"] is not None:
            say("--guidance has no effect without --class")
        changes["guidance"] = 1.0
    settings = found.settings(given.preset, **changes)
    if single:
        gate.check_file(out)
    else:
        gate.check_images(out, given.count)
    _sample_images(out, given, asked, settings, share, gate, single=single)


def _sample_images(
    out: Path,
    given: SimpleNamespace,
    asked: list[int] | None,
    settings: Any,
    share: tuple[int, int],
    gate: Gate,
    *,
    single: bool,
) -> None:
    """Load the model, sample into a file or a folder, and say what was done."""
    model, n, guide, recording = load(given), given.count, None, None
    if given.guide is not None:
        guide = model.encode_guide(given.guide, **({} if given.strength is None else {"strength": given.strength}))
    if given.trajectory is not None and share[0] == 0:
        from ggm_image.pipelines.trajectory import Trajectory

        recording = Trajectory(model)
    request: dict[str, Any] = {"seed": given.seed, "settings": settings, "guide": guide}
    callback = None if recording is None else recording.record
    start = time.perf_counter()
    if single:
        _sample_grid(model, out, n, asked, gate, callback, request)
        sampled, missing = n, 0
    else:
        from ggm_image.pipelines.sample_folder import sample_to_folder

        files: dict[str, Any] = {"share": share, "overwrite": given.overwrite, "encoding": gate.encoding}
        done = sample_to_folder(model, out, n, classes=asked, callback=callback, **files, **request)
        sampled, missing = done.sampled, done.missing
    seconds = time.perf_counter() - start
    if recording is not None:
        recording.save(given.trajectory)
    if given.as_json:
        labels = None if asked is None else turns(asked, range(n))
        manifest = model.manifest(n, classes=labels, **request) | gate.encoding.described
        told = {"out": str(out), "seconds": round(seconds, 3), "drawn": sampled, "missing": missing}
        click.echo(json.dumps({**told, "share": f"{share[0]}/{share[1]}", **manifest}))
    else:
        _say_done(out, n, sampled, missing, share, settings.calls(model.grid[0] * model.grid[1]), seconds)


def _folder_of_texts(context: click.Context, out: Path) -> Path | None:
    """``--out`` of a model of text: a folder, or None where texts are printed."""
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
    model: Any, out: Path, n: int, asked: list[int] | None, gate: Gate, callback: Any, request: dict[str, Any]
) -> None:
    """One image, or a grid of them."""
    from ggm_image.image.io import to_pil
    from ggm_image.image.visualize import grid_size, image_grid
    from ggm_image.pipelines.sample_folder import sample_rows
    from ggm_image.runtime.progress import progress_bar

    height, width = grid_size(n, *model.image_size)
    gate.encoding.check_size(width, height)
    with progress_bar(total=n, unit="img", label="sample") as advance:
        options = {"callback": callback, "on_batch": lambda done: advance(len(done)), **request}
        tokens = sample_rows(model, range(n), asked, **options)
    labels = None if asked is None else turns(asked, range(n))
    manifest = model.manifest(n, classes=labels, **request)
    manifest["classes"] = None if asked is None else [model.class_names[label] for label in asked]  # in turn
    gate.save(out, to_pil(image_grid(model.decode(tokens))), manifest)
