"""``encode`` and ``decode``."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import click

from ggm_image.cli.encode_summary import print_summary, say_share_done, summary_of
from ggm_image.cli.options import (
    F,
    GroupedCommand,
    batch_size_option,
    device_option,
    how,
    ignored_seed_option,
    json_option,
    overwrite_option,
    own_device,
    print_json,
    seed_option,
    shard_option,
    skip_bad_option,
    what,
    where,
)
from ggm_image.cli.text_tokens import (
    decode_text,
    encode_text,
    is_text_cache,
    refuse_image_options,
    refuse_text_options,
    verify_text,
)
from ggm_image.errors import UserError
from ggm_image.io.outputs import Gate, merged_folder
from ggm_image.runtime.devices import resolve_device
from ggm_image.runtime.streams import say

if TYPE_CHECKING:
    from ggm_image.data.sources.base import ImageStream
    from ggm_image.data.sources.image_files import ImageSource
    from ggm_image.metrics.feature_extractors import Extractor


def tokenizer_option(help: str) -> Callable[[F], F]:
    """``--tokenizer``, passed as ``tokenizer_name: str | None``."""
    return click.option("--tokenizer", "tokenizer_name", metavar="NAME_OR_PATH", help=help)


@click.command(cls=GroupedCommand)
@click.argument("src")
@click.argument("out", required=False, type=click.Path(path_type=Path))
@what(
    tokenizer_option("Known name, folder or checkpoint."),
    click.option("--image-size", type=click.IntRange(1, 1 << 14), help="Side in pixels; the tokenizer's by default."),
    click.option("--flip", is_flag=True, help="Add every image mirrored: first all originals, then all mirrored."),
    click.option(
        "--shifts",
        type=click.IntRange(0),
        default=0,
        metavar="N",
        help="Add N copies of every image, each shifted by a few pixels: more data for many epochs.",
    ),
    click.option("--classes", metavar="FILE|N", help="Names of a WebDataset's classes, one a line; or their number."),
    click.option(
        "--label-key",
        metavar="KEY",
        default="",
        help="Where a WebDataset's classes are: a field of the .json, or a suffix as .cls; found by default.",
    ),
    click.option("--length", type=click.IntRange(1, 1 << 16), help="Tokens in a row of text; 256 by default."),
    click.option("--text-key", metavar="KEY", help="Field with the text of JSON lines; 'text' by default."),
    skip_bad_option,
    click.option(
        "--verify", "wants_proof", is_flag=True, help="Encode nothing; check that OUT is complete, and SRC's."
    ),
)
@how(
    batch_size_option("Images in one pass; fits the device by default."),
    click.option(
        "--precision",
        type=click.Choice(["fp32", "bf16"]),
        default="fp32",
        help="bf16 is faster, but changes about one token in fifty; noted in OUT.",
    ),
    click.option("--workers", type=click.IntRange(1), help="Threads that read images; one per core by default."),
    seed_option,
    device_option,
    shard_option,
)
@where(
    click.option("--shard-size", type=click.IntRange(1), default=10_000, help="Images in one file of OUT."),
    click.option(
        "--overwrite",
        is_flag=True,
        help="Replace a token cache in OUT of other images or settings; encode changed images again.",
    ),
    click.option(
        "--report",
        "wants_report",
        is_flag=True,
        help="Measure PSNR, SSIM, chequered patches, codebook use; write image pairs.",
    ),
    click.option(
        "--report-images", type=click.IntRange(1), default=5000, help="Number of images that the report decodes."
    ),
    click.option("--features", metavar="NAME", help="Also report the rFID or rFD: the names of `fid --features`."),
    click.option(
        "--reference",
        metavar="IMAGES",
        help="With --features: also report the FD to these images, of originals and of reconstructions.",
    ),
    json_option,
)
def encode(src: str, out: Path | None, tokenizer_name: str | None, wants_proof: bool, **options: Any) -> None:
    """Encode the images or the text of SRC into a token cache at OUT.

    With `--tokenizer bytes` or a tokenizer.json SRC is text: a file, a folder of .txt or .jsonl files, a tar of one,
    compressed or not, or hub:NAME. Its documents are joined and cut into rows of --length tokens; `decode` gives them
    back byte for byte.

    SRC is a folder of images or of class folders, a .tar, .tar.xz or .tar.gz of one, or a folder of tars. Or what is
    read from front to back and never lies on this disk: tar shards of WebDataset as 'shards/{000..127}.tar', an address
    (https://, s3://, hdfs:// ...) or 'pipe:COMMAND', with braces too; hub:NAME[@REVISION][:SPLIT] of Hugging Face.

    The centre square is resized to the image size. Interrupted, the same command resumes after the finished shards. It
    checks first whether their images have changed since: by size and time, and where these differ by content.

    Several processes share the work: under torchrun, or each with its own --shard I/N. The last one completes OUT,
    which does not depend on how many there were. A final `encode SRC OUT --verify` (or `encode OUT --verify`, where SRC
    no longer exists) checks counts, hashes and that no shard is duplicated, and with SRC that every image is the one
    that was encoded.

    --seed chooses the images of the report; encoding itself is deterministic.
    """
    context, given = click.get_current_context(), SimpleNamespace(**options)
    if wants_proof:
        # SRC may be left out: then the only argument is the cache.
        source, cache = (None, Path(src)) if out is None else (src, out)
        if is_text_cache(cache):
            refuse_image_options(context)
            verify_text(source, cache, given)
        else:
            refuse_text_options(context)
            _prove(source, cache, given)
        return
    if out is None or tokenizer_name is None:
        hint, kind = ("OUT", "argument") if out is None else ("--tokenizer", "option")
        raise click.MissingParameter(ctx=context, param_hint=hint, param_type=kind)
    Gate("encode", None, "OUT").check_folder(out)
    from ggm_image.tokenizers.registry import is_text_tokenizer

    if is_text_tokenizer(tokenizer_name):
        refuse_image_options(context)
        encode_text(src, out, tokenizer_name, given)
    else:
        refuse_text_options(context)
        _encode_images(src, out, tokenizer_name, given)


def _encode_images(src: str, out: Path, tokenizer_name: str, given: SimpleNamespace) -> None:
    """Encode images, with a report if it is asked for, and print what there is."""
    from ggm_image.data.encode import encode as encode_source
    from ggm_image.data.encode import nearest_folder
    from ggm_image.data.sources.base import ImageStream
    from ggm_image.data.sources.image_files import ImageSource
    from ggm_image.metrics.reconstruction import report
    from ggm_image.runtime.ranks import rank_and_world_size
    from ggm_image.tokenizers.registry import load_tokenizer

    part = rank_and_world_size(given.shard)
    device = own_device(given.device)
    source = _open_source(src, nearest_folder(out), _class_names(given.classes), given)
    if given.wants_report and (part[1] > 1 or not isinstance(source, ImageSource)):
        got = f"{part[1]} processes" if part[1] > 1 else src
        fix = "encode without it; for a report, encode a folder of some of the images in one process"
        raise UserError("--report needs one process and images that can be read at random", got, fix)
    extractor, others = _distance_of_report(given, nearest_folder(out), device)
    tokenizer = load_tokenizer(tokenizer_name, device=device)
    cache = encode_source(
        source,
        out,
        tokenizer,
        image_size=given.image_size,
        flip=given.flip,
        shifts=given.shifts,
        skip_bad=given.skip_bad,
        batch_size=given.batch_size,
        shard_size=given.shard_size,
        device=device,
        workers=given.workers,
        tokenizer_source=tokenizer_name,
        share=part,
        precision=given.precision,
        overwrite=given.overwrite,
    )
    if isinstance(source, ImageStream) and source.left_out:
        say(f"note: {source.description}: left out {source.left_out}")
    if cache is None:  # other processes have shards to finish
        say_share_done(out, part, given.as_json)
        return
    summary = summary_of(cache, out)
    if given.wants_report and isinstance(source, ImageSource):
        summary["report"] = report(
            source,
            cache,
            tokenizer,
            device=device,
            batch_size=given.batch_size,
            images=given.report_images,
            seed=given.seed,
            workers=given.workers,
            extractor=extractor,
            reference=others,
        )
    if given.as_json:
        print_json(summary)
    else:
        print_summary(summary, out)


def _class_names(classes: str | None) -> Sequence[str]:
    """The names that ``--classes`` gives, none by default."""
    from ggm_image.data.sources.base import read_classes

    return read_classes(classes) if classes else ()


def _open_source(
    src: str, scratch: Path, class_names: Sequence[str], given: SimpleNamespace
) -> "ImageSource | ImageStream":
    from ggm_image.data.sources.open import open_images

    return open_images(
        src, scratch=scratch, class_names=class_names, shard_size=given.shard_size, label_key=given.label_key
    )


def _distance_of_report(
    given: SimpleNamespace, scratch: Path, device: str
) -> "tuple[Extractor | None, ImageSource | None]":
    """What the report's Fréchet distances are computed with and compared to; opened before hours of encoding."""
    features, reference = given.features, given.reference
    if features is None:
        if reference is not None:
            raise UserError("--reference belongs to --features", reference, "add --features, or leave it out")
        return None, None
    if not given.wants_report:
        raise UserError("--features belongs to --report", features, "add --report, or leave it out")

    from ggm_image.data.sources.image_files import open_source
    from ggm_image.metrics.feature_extractors import load_extractor

    others = None if reference is None else open_source(reference, scratch=scratch)
    return load_extractor(features, device=device), others


def _prove(src: str | None, out: Path, given: SimpleNamespace) -> None:
    """Check a cache, and with ``src`` that its images are those that were encoded."""
    from ggm_image.data.encode import nearest_folder
    from ggm_image.data.token_cache.reader import TokenCache
    from ggm_image.data.token_cache.verify import verify

    source = None
    if src is not None:
        names = _class_names(given.classes)
        if not names and not src.startswith("hub:") and (manifest := TokenCache.open(out).manifest).parts:
            names = manifest.class_names  # the cache knows them, in the order of its labels
        source = _open_source(src, nearest_folder(out), names, given)
    proof = verify(out, source)
    if given.as_json:
        print_json({"out": str(out), **proof})
    else:
        skipped = f", {proof['skipped']} skipped" if proof["skipped"] else ""
        click.echo(
            f"{proof['count']} images{skipped} in {proof['shards']} shards: every SHA-256, count, token and label "
            f"is right, no {proof['distinct']} twice: {out}"
        )
        if proof["content"]:
            click.echo(f"every image of {src} is the one that was encoded")
        elif src is not None:
            click.echo("note: an earlier version made the cache: the content of its images is not known", err=True)


@click.command(cls=GroupedCommand)
@click.argument("tokens", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@what(tokenizer_option("Known name, folder or checkpoint; the one that the cache names by default."))
@how(batch_size_option("Grids in one pass; fits the device by default."), ignored_seed_option, device_option)
@where(overwrite_option, json_option)
def decode(
    tokens: Path,
    out: Path,
    tokenizer_name: str | None,
    batch_size: int | None,
    overwrite: bool,
    device: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Decode the token cache TOKENS into PNG files in the new folder OUT, or back into text.

    Rows become 000000.png ..., in class folders where the cache has classes. A cache of text becomes one file where
    OUT ends in .txt, otherwise a folder with a file for each document.
    """
    if is_text_cache(tokens):
        decode_text(tokens, out, tokenizer_name, overwrite=overwrite, as_json=as_json)
        return
    Gate("decode", overwrite, "OUT").check_folder(out, empty=True)

    from ggm_image.data.decode import decode as decode_cache
    from ggm_image.data.decode import tokenizer_of
    from ggm_image.data.token_cache.reader import TokenCache
    from ggm_image.tokenizers.registry import load_tokenizer

    cache = TokenCache.open(tokens)
    device = resolve_device(device)
    tokenizer = load_tokenizer(tokenizer_name or tokenizer_of(cache.manifest), device=device)
    with merged_folder(out) as folder:
        count = decode_cache(cache, folder, tokenizer, batch_size=batch_size, device=device)
    if as_json:
        print_json({"out": str(out), "count": count})
    else:
        click.echo(f"{count} images: {out}")
