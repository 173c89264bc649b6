"""What `encode` says of a token cache when it is done."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggm_image.cli.options import print_json

if TYPE_CHECKING:
    from ggm_image.data.token_cache.reader import TokenCache


def say_share_done(out: Path, part: tuple[int, int], as_json: bool) -> None:
    """What a process says that leaves an unfinished cache to the others."""
    from ggm_image.data.token_cache.manifest import shards_left

    left = shards_left(out)
    if as_json:
        print_json({"out": str(out), "left": left})
    else:
        click.echo(f"share {part[0]}/{part[1]} is done, {left} shards are left to other processes: {out}")


def summary_of(cache: "TokenCache", out: Path) -> dict[str, Any]:
    """What `encode` reports of a complete cache; skipped images are named on stderr."""
    manifest = cache.manifest
    # Mirrored and shifted copies are items too; an image is named once.
    skipped = [entry for entry in manifest.skipped() if entry["item"] < manifest.images]
    for entry in skipped:
        click.echo(f"skipped: {entry['why']}", err=True)
    return {
        "out": str(out),
        "count": len(cache),
        "skipped": [entry["name"] for entry in skipped],
        "grid": list(manifest.grid),
        "image_size": manifest.image_size,
        "classes": len(manifest.class_names),
        "tokenizer": manifest.tokenizer_name,
    }


def print_summary(summary: dict[str, Any], out: Path) -> None:
    """Print what `summary_of` gives, and the report if there is one."""
    rows, columns = summary["grid"]
    classes = f", {summary['classes']} classes" if summary["classes"] else ""
    click.echo(f"{summary['count']} images as {rows} x {columns} tokens{classes}: {out}")
    if report := summary.get("report"):
        use = report["codebook"]
        click.echo(f"PSNR {report['psnr_db']['mean']:.2f} dB, SSIM {report['ssim']['mean']:.4f}", nl=False)
        click.echo(f" (mean of {report['images']} images)")
        click.echo(f"codes used {use['share']:.1%} of {use['size']}, perplexity {use['perplexity']:.0f}")
        originals, reconstructions = (report["chequered"][side] for side in ("originals", "reconstructions"))
        click.echo(f"chequered cells {reconstructions['cells']:.3%} (originals {originals['cells']:.3%})", nl=False)
        click.echo(f", images {reconstructions['images']:.1%} (originals {originals['images']:.1%})")
        if frechet := report.get("frechet"):
            for warning in frechet["warnings"]:
                click.echo(f"warning: {warning}", err=True)
            click.echo(f"{frechet['metric']} {frechet['value']:.4f}")
            if other := frechet.get("reference"):
                pair = f"reconstructions {other['reconstructions']:.4f}, originals {other['originals']:.4f}"
                click.echo(f"{other['metric']} to {other['images']} images of {other['source']}: {pair}", nl=False)
                click.echo(f", excess {other['excess']:.4f}")
        worst = report["worst"][0]
        click.echo(f"worst: {worst['name']}, {worst['psnr_db']:.2f} dB")
        click.echo(f"{out / 'report.png'}, {out / 'worst.png'}, {out / 'report.json'}")
