"""``ggm-image fid``."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ggm_image.cli.draw import COMPILE, sampler_options
from ggm_image.cli.options import choose_device, device_option, json_option, print_json, seed_option, share_option
from ggm_image.errors import UserError

_SHOWN_CLASSES = 40
_OF_A_MODEL = ("count", "classes", "preset", "order", "sweeps", "block", "guidance", "guidance_power", "temperature",
              "top_k", "top_p", "compiled")  # fmt: skip


@click.command()
@click.argument("sides", nargs=-1, metavar="[GENERATED] REFERENCE")
@click.option("--model", "model_name", metavar="NAME|DIR", help="Draw from this model instead of reading GENERATED.")
@click.option("-n", "count", type=click.IntRange(2), default=50_000, show_default=True, help="Pictures of a model.")
@click.option("--class", "classes", metavar="NAME|INDEX", help="Class of a model's pictures; each in turn by default.")
@sampler_options
@click.option(
    "--features",
    default="inception",
    show_default=True,
    metavar="NAME",
    help="inception, clip, timm:NAME, or a TorchScript FILE.pt.",
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="Local file with the weights of inception or timm:NAME, instead of a download.",
)
@click.option(
    "--metrics", default="fid,kid,prdc", show_default=True, help="Which to take; the time of prdc grows with n^2."
)
@click.option("--bootstrap", type=click.IntRange(0), default=100, show_default=True, help="Replicates; 0 is off.")
@click.option(
    "--statistics",
    type=click.Path(path_type=Path),
    help="Folder to keep features in: found again, and gone on with after an interruption.",
)
@click.option("--tokenizer", metavar="NAME|DIR", help="Tokenizer of a token cache or a model, where it has moved.")
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Pictures a pass.")
@COMPILE
@share_option
@seed_option
@device_option
@json_option
@click.pass_context
def fid(
    context: click.Context,
    sides: tuple[str, ...],
    model_name: str | None,
    count: int,
    classes: str | None,
    preset: str,
    features: str,
    weights: Path | None,
    metrics: str,
    bootstrap: int,
    statistics: Path | None,
    tokenizer: str | None,
    batch_size: int,
    compiled: bool,
    shard: str | None,
    seed: int,
    device: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare GENERATED with REFERENCE: FID, KID, precision and recall, in all and class by class.

    Each is a folder or tar of pictures, a token cache, a model (its folder, or model:NAME) or a folder of saved
    features. A model draws -n pictures on the fly. The distance is a FID with the features of Inception only.
    --json prints the whole protocol.

    Several processes share the work in a folder of --statistics: those of torchrun, or one command with --shard 0/4,
    one with 1/4 ... Number 0 prints the figures; it makes itself what the others leave.
    """
    if model_name is not None:
        sides = (f"model:{model_name}", *sides)
    _check_sides(sides, model_name)

    from ggm_image.metrics.sides import Drawing, kind_of, open_side

    if not any(kind_of(side) == "model" for side in sides):
        given = [name for name in _OF_A_MODEL if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
        if given:
            option = next(p.opts[0] for p in context.command.params if p.name == given[0])
            raise UserError("option is for a model, and neither side is one", option, "add --model, or leave it out")

    from ggm_image.metrics.features import load_extractor
    from ggm_image.metrics.score import score
    from ggm_image.processes import share

    rank, processes = share(shard)
    device = choose_device(device)
    drawing = Drawing(n=count, seed=seed, classes=classes, preset=preset, changes=options, compiled=compiled)
    # Paths first: a typing error should not wait for a network to load.
    generated, reference = (open_side(s, tokenizer=tokenizer, device=device, drawing=drawing) for s in sides)
    report = score(
        generated,
        reference,
        load_extractor(features, weights=weights, device=device),
        metrics=[name.strip() for name in metrics.split(",") if name.strip()],
        statistics=statistics,
        bootstrap=bootstrap,
        seed=seed,
        batch_size=batch_size,
        share=(rank, processes),
    )
    if rank:
        click.echo(f"share {rank}/{processes} is done; number 0 prints the figures", err=True)
        return
    for warning in report["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        print_json(report)
    else:
        click.echo(summary(report))


def _check_sides(sides: tuple[str, ...], model_name: str | None) -> None:
    if len(sides) == 2:
        return
    got = " ".join(sides) or "nothing"
    if model_name is not None and len(sides) > 2:
        raise UserError("--model takes the place of GENERATED", f"got {got}", "give REFERENCE alone")
    fix = "give REFERENCE" if model_name is not None else "give GENERATED and REFERENCE, or --model and REFERENCE"
    raise UserError("two sides are compared", f"got {got}", fix)


def summary(report: dict[str, Any]) -> str:
    """The figures in a few aligned lines, and a line a class."""
    rows = []
    if report["value"] is not None:
        interval = ""
        if sampled := report["bootstrap"]:
            low, high = sampled["interval"]
            interval = f"  {sampled['level']:.0%} interval {low:.4f} to {high:.4f}, bias about {sampled['bias']:+.4f}"
        rows.append((report["metric"], f"{report['value']:.4f}{interval}"))
    if kid := report["kid"]:
        error = "" if kid["standard_error"] is None else f" +- {kid['standard_error']:.1g}"
        rows.append((_kernel_name(report), f"{kid['value']:.4g}{error}  subsets of {kid['subset_size']}"))
    if report["precision"] is not None:
        rows.append(("precision, recall", f"{report['precision']:.4f}, {report['recall']:.4f}"))
        rows.append(("density, coverage", f"{report['density']:.4f}, {report['coverage']:.4f}"))
    if report["class_accuracy"] is not None:
        real = report["reference"]["class_accuracy"]
        beside = "" if real is None else f" (reference {real:.1%})"
        rows.append(("class accuracy", f"{report['class_accuracy']:.1%}{beside}"))
    rows.append(("pictures", f"{report['generated']['n']} against {report['reference']['n']}"))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {figure}" for name, figure in rows]
    return "\n".join([*lines, *_per_class(report)])


def _kernel_name(report: dict[str, Any]) -> str:
    """KID is the kernel distance on Inception's features, and no other."""
    return "KID" if report["metric"] == "FID" else "kernel distance"


def _per_class(report: dict[str, Any]) -> list[str]:
    table: dict[str, dict[str, Any]] = report["per_class"] or {}
    columns = [(key, head) for key, head in (("value", "distance"), ("kid", "kernel")) if report[key] is not None]
    if not table or not columns:
        return []
    if len(table) > _SHOWN_CLASSES:
        return [f"per class: {len(table)} classes, see --json"]
    width = max(5, *map(len, table))
    lines = ["", f"{'class':<{width}}  {'n':>6}  reference" + "".join(f"  {head:>10}" for _, head in columns)]
    for name, row in table.items():
        figures = "".join(f"  {'-' if row[key] is None else format(row[key], '.4g'):>10}" for key, _ in columns)
        lines.append(f"{name:<{width}}  {row['n']:>6}  {row['n_reference']:>9}{figures}")
    return lines
