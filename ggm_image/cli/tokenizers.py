"""``tokenizers`` and ``convert``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggm_image.cli.options import GroupedCommand, how, json_option, overwrite_option, print_json, what, where
from ggm_image.errors import UserError
from ggm_image.io.outputs import Gate, check_inputs_kept, merged_folder

if TYPE_CHECKING:
    from ggm_image.tokenizers.spec import TokenizerSpec


def _row(spec: "TokenizerSpec") -> dict[str, Any]:
    there = spec.weights.is_file()
    return {
        "name": spec.name,
        "family": spec.family,
        "image_size": spec.image_size,
        "downscale": spec.downscale,
        "grid": [spec.grid, spec.grid],
        "codes": spec.codebook_size,
        "megabytes": round(spec.weights.stat().st_size / 1e6, 1) if there else None,
        "weights": str(spec.weights),
        "urls": spec.urls,
        "sha256": spec.sha256 or None,
        "licence": spec.licence,
        "data": spec.data,
        "reported": spec.reported,
        "page": spec.page,
        "folder": str(spec.folder),
    }


@click.command(cls=GroupedCommand)
@where(json_option)
def tokenizers(as_json: bool) -> None:
    """List the known tokenizers: pixels, grid, codes, what is on disk, reported figures of reconstructions.

    Those that are not on disk are downloaded when they are first used, into GGM_IMAGE_CACHE (~/.cache/ggm-image).
    With GGM_IMAGE_OFFLINE=1 nothing is; --json says where each file belongs.
    """
    from ggm_image.tokenizers.registry import tokenizer_specs
    from ggm_image.tokenizers.text import TEXT_TOKENIZERS

    rows = [_row(spec) for spec in tokenizer_specs()]
    if as_json:
        print_json(rows)
        return
    table: list[tuple[str, ...]] = [("name", "pixels", "grid", "codes", "family", "on disk", "rFID", "FD", "PSNR")]
    for row in rows:
        reported = row["reported"]
        rfid = [value for key, value in reported.items() if key.startswith("rfid") and key != "rfid_source"]
        figures = (rfid[0] if rfid else "-", *(reported.get(key, "-") for key in ("fd_efficientnet_lite0", "psnr_db")))
        disk = "no" if row["megabytes"] is None else f"{row['megabytes']} MB"
        grid = " x ".join(map(str, row["grid"]))
        cells = (row["name"], row["image_size"], grid, row["codes"], row["family"], disk, *figures)
        table.append(tuple(map(str, cells)))
    widths = [max(len(line[k]) for line in table) for k in range(len(table[0]))]
    for line in table:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    text = ", ".join(f"{name} ({make().codebook_size} codes)" for name, make in TEXT_TOKENIZERS.items())
    click.echo(f"For text, without weights: {text}; any byte-level tokenizer.json, e.g. of train-tokenizer bpe-4096.")
    click.echo(
        "rFID and PSNR (dB) are reported, FD is ours, on EfficientNet-Lite0's features; the cards say on which images."
    )


@click.command(cls=GroupedCommand)
@click.argument("src")
@click.argument("out", type=click.Path(path_type=Path))
@what(
    click.option("--like", metavar="NAME", default="", help="Name of the known tokenizer that SRC is."),
    click.option("--name", default="", help="Name of the result; unchanged by default."),
)
@how(
    click.option("--half", is_flag=True, help="Round to float16: half the size, but another tokenizer."),
    click.option(
        "--pixels",
        type=click.Choice(["-1..1", "0..1"]),
        help="Pixel range of the network in a diffusers folder; guessed by default.",
    ),
)
@where(overwrite_option, json_option)
def convert(
    src: str, out: Path, like: str, name: str, half: bool, pixels: str | None, overwrite: bool, as_json: bool
) -> None:
    """Write the tokenizer SRC as safetensors and config.yaml into the new folder OUT.

    SRC is a known name, a checkpoint (.ckpt, .pt, .bin, .safetensors) with its config beside it where it has one,
    or a folder of taming-transformers, latent-diffusion or diffusers. Nothing in it is run.
    """
    check_inputs_kept(out, src, option="OUT")
    Gate("convert", overwrite, "OUT").check_folder(out, empty=True)

    from ggm_image.tokenizers.convert import convert_tokenizer
    from ggm_image.tokenizers.registry import find_tokenizer, published_spec

    path = Path(src)
    if like or pixels:
        if not path.exists():
            raise UserError("--like and --pixels need a file or a folder", f"got {src}", "check the path")
        spec = published_spec(path, like=like, unit_range=None if pixels is None else pixels == "0..1")
    else:
        spec = find_tokenizer(src)
    with merged_folder(out) as folder:
        made = convert_tokenizer(spec, folder, name=name, half=half)
        size = made.weights.stat().st_size / 1e6
    if as_json:
        print_json({"out": str(out), "name": made.name, "family": made.family, "sha256": made.sha256})
    else:
        click.echo(f"{out}: {made.name}, family {made.family}, {made.codebook_size} codes, {size:.1f} MB")
