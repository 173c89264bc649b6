"""``encode`` and ``decode``."""

from pathlib import Path
from typing import Any

import click

from ggm_image.cli.options import device_option, json_option, print_json, resolve_device, seed_option
from ggm_image.errors import UserError


@click.command()
@click.argument("src", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--tokenizer", "tokenizer_name", required=True, metavar="NAME_OR_PATH", help="Known name, folder or checkpoint."
)
@click.option("--image-size", type=click.IntRange(1), help="Side in pixels; the tokenizer's own by default.")
@click.option("--flip", is_flag=True, help="Add every picture mirrored: first all originals, then all mirrored.")
@click.option("--skip-bad", is_flag=True, help="Name and leave out pictures that cannot be read.")
@click.option("--report", "wants_report", is_flag=True, help="Measure PSNR, SSIM, codebook use; draw pictures.")
@click.option(
    "--report-images",
    type=click.IntRange(1),
    default=5000,
    show_default=True,
    help="Pictures that it decodes.",
)
@click.option("--features", metavar="NAME", help="Also report the rFID: inception, clip, timm:NAME or a FILE.pt.")
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Pictures a pass.")
@click.option("--shard-size", type=click.IntRange(1), default=10_000, show_default=True, help="Pictures a file.")
@click.option("--workers", type=click.IntRange(1), help="Threads that read pictures; one a core by default.")
@device_option
@seed_option
@json_option
def encode(
    src: Path,
    out: Path,
    tokenizer_name: str,
    image_size: int | None,
    flip: bool,
    skip_bad: bool,
    wants_report: bool,
    report_images: int,
    features: str | None,
    batch_size: int,
    shard_size: int,
    workers: int | None,
    device: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Encode the pictures of SRC into a token cache at OUT.

    SRC is a folder of pictures or of class folders, a .tar, .tar.xz or .tar.gz of one, or a folder of tars.
    The centre square is resized to the image size. Interrupted, the same command goes on after the last
    finished shard. --seed draws the pictures of the report; encoding itself draws nothing.
    """
    from ggm_image.data.encode import encode as encode_source
    from ggm_image.data.encode import nearest_folder
    from ggm_image.data.images import open_source
    from ggm_image.metrics.reconstruction import report
    from ggm_image.tokenizers.registry import load_tokenizer

    device = resolve_device(device)
    source = open_source(src, scratch=nearest_folder(out))
    extractor = None
    if features is not None:
        from ggm_image.metrics.features import load_extractor

        if not wants_report:
            raise UserError("--features belongs to --report", features, "add --report, or leave it out")
        extractor = load_extractor(features, device=device)
    tokenizer = load_tokenizer(tokenizer_name, device=device)
    cache = encode_source(
        source,
        out,
        tokenizer,
        image_size=image_size,
        flip=flip,
        skip_bad=skip_bad,
        batch_size=batch_size,
        shard_size=shard_size,
        device=device,
        workers=workers,
        tokenizer_source=tokenizer_name,
    )
    manifest = cache.manifest
    skipped = [entry for entry in manifest.skipped() if entry["item"] < len(source)]
    for entry in skipped:
        click.echo(f"skipped: {entry['why']}", err=True)
    summary: dict[str, Any] = {
        "out": str(out),
        "count": len(cache),
        "skipped": [entry["name"] for entry in skipped],
        "grid": list(manifest.grid),
        "image_size": manifest.image_size,
        "classes": len(manifest.class_names),
        "tokenizer": manifest.tokenizer_name,
    }
    if wants_report:
        summary["report"] = report(
            source,
            cache,
            tokenizer,
            device=device,
            batch_size=batch_size,
            images=report_images,
            seed=seed,
            workers=workers,
            extractor=extractor,
        )
    if as_json:
        print_json(summary)
    else:
        _print_summary(summary, out)


def _print_summary(summary: dict[str, Any], out: Path) -> None:
    rows, columns = summary["grid"]
    classes = f", {summary['classes']} classes" if summary["classes"] else ""
    click.echo(f"{summary['count']} pictures as {rows} x {columns} tokens{classes}: {out}")
    if report := summary.get("report"):
        use = report["codebook"]
        click.echo(f"PSNR {report['psnr_db']['mean']:.2f} dB, SSIM {report['ssim']['mean']:.4f}", nl=False)
        click.echo(f" (mean of {report['images']} pictures)")
        click.echo(f"codes used {use['share']:.1%} of {use['size']}, perplexity {use['perplexity']:.0f}")
        if frechet := report.get("frechet"):
            for warning in frechet["warnings"]:
                click.echo(f"warning: {warning}", err=True)
            click.echo(f"{frechet['metric']} {frechet['value']:.4f}")
        worst = report["worst"][0]
        click.echo(f"worst: {worst['name']}, {worst['psnr_db']:.2f} dB")
        click.echo(f"{out / 'report.png'}, {out / 'worst.png'}, {out / 'report.json'}")


@click.command()
@click.argument("tokens", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--tokenizer", "tokenizer_name", metavar="NAME_OR_PATH", help="By default the one that the cache names.")
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True, help="Grids a pass.")
@device_option
@click.option("--seed", type=click.IntRange(0), default=0, help="Accepted everywhere; decoding draws nothing.")
@json_option
def decode(
    tokens: Path,
    out: Path,
    tokenizer_name: str | None,
    batch_size: int,
    device: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Decode the token cache TOKENS into PNG files in the new folder OUT.

    Rows become 000000.png ..., in class folders where the cache has classes.
    """
    from ggm_image.cli.options import check_output_folder
    from ggm_image.data.encode import decode as decode_cache
    from ggm_image.data.encode import tokenizer_of
    from ggm_image.data.token_cache import TokenCache
    from ggm_image.tokenizers.registry import load_tokenizer

    cache = TokenCache.open(tokens)
    check_output_folder(out)
    device = resolve_device(device)
    tokenizer = load_tokenizer(tokenizer_name or tokenizer_of(cache.manifest), device=device)
    count = decode_cache(cache, out, tokenizer, batch_size=batch_size, device=device)
    if as_json:
        print_json({"out": str(out), "count": count})
    else:
        click.echo(f"{count} pictures: {out}")
