"""``ggm-image fid``."""

from pathlib import Path
from typing import Any

import click

from ggm_image.cli.options import device_option, json_option, print_json, resolve_device


@click.command()
@click.argument("generated", type=click.Path(path_type=Path))
@click.argument("reference", type=click.Path(path_type=Path))
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
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Pictures a pass.")
@device_option
@json_option
def fid(
    generated: Path,
    reference: Path,
    features: str,
    weights: Path | None,
    batch_size: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Fréchet distance between the pictures of GENERATED and REFERENCE: folders or tar archives.

    It is a FID with the features of Inception only. --json prints the whole protocol.
    """
    from ggm_image.data.images import open_source
    from ggm_image.metrics.features import load_extractor
    from ggm_image.metrics.score import score

    # Paths first: a typing error should not wait for a network to load.
    sources = open_source(generated), open_source(reference)
    extractor = load_extractor(features, weights=weights, device=resolve_device(device))
    report = score(*sources, extractor, batch_size=batch_size)
    for warning in report["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    if as_json:
        print_json(report)
    else:
        click.echo(summary(report))


def summary(report: dict[str, Any]) -> str:
    """The figure, and what it was taken of, in one or two lines."""
    counts = f"{report['generated']['n']} pictures against {report['reference']['n']}"
    lines = [f"{report['metric']} {report['value']:.4f} ({counts})"]
    if report["class_accuracy"] is not None:
        lines.append(f"class accuracy {report['class_accuracy']:.1%}")
    return "\n".join(lines)
