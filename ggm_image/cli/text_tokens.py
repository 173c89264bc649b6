"""``encode`` and ``decode`` of text."""

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from ggm_image.cli.encode_summary import say_share_done
from ggm_image.cli.options import print_json
from ggm_image.errors import UserError
from ggm_image.io.files import read_json_table
from ggm_image.io.outputs import Gate

LENGTH = 256
"""Tokens of a row by default."""
_FOR_BOTH = {"shard_size", "overwrite", "shard", "wants_proof", "device", "seed", "as_json", "src", "out"}
_FOR_TEXT = {"tokenizer_name", "length", "text_key"}


def refuse_image_options(context: click.Context) -> None:
    """Raise UserError for an option that was given and that only images have."""
    _refuse(context, _FOR_BOTH | _FOR_TEXT, "belongs to images", "leave it out: the tokenizer is one of text")


def refuse_text_options(context: click.Context) -> None:
    """Raise UserError for an option that was given and that only text has."""
    others = {parameter.name or "" for parameter in context.command.params} - {"length", "text_key"}
    _refuse(context, others, "belongs to text", "leave it out, or add --tokenizer bytes")


def refuse_image_training_options(context: click.Context) -> None:
    """Raise UserError for an option of train-tokenizer that was given and that only images have."""
    allowed = {"config", "data", "out", "overwrite", "text_key"}
    _refuse(context, allowed, "belongs to images", "leave it out: bpe-V needs --data, --out and --text-key")


def _refuse(context: click.Context, allowed: set[str], what: str, fix: str) -> None:
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is click.core.ParameterSource.COMMANDLINE and parameter.name not in allowed:
            name = parameter.opts[-1]
            raise UserError(f"{name} {what}", f"{name} {context.params[parameter.name or '']}", fix)


def encode_text(src: str, out: Path, tokenizer_name: str, given: SimpleNamespace) -> None:
    """Encode text into a token cache, and say what there is."""
    from ggm_image.data.text import encode_text as encode
    from ggm_image.runtime.ranks import rank_and_world_size
    from ggm_image.tokenizers.registry import load_text_tokenizer

    part = rank_and_world_size(given.shard)
    cache = encode(
        src,
        out,
        load_text_tokenizer(tokenizer_name),
        length=given.length or LENGTH,
        text_key=given.text_key or "text",
        shard_size=given.shard_size,
        share=part,
        overwrite=given.overwrite,
    )
    if cache is None:
        say_share_done(out, part, given.as_json)
        return
    summary = _summary(cache, out)
    if given.as_json:
        print_json(summary)
    else:
        documents, rows = _counted(summary["documents"], "document"), _counted(summary["count"], "row")
        click.echo(f"{documents}, {summary['bytes']:,} bytes, as {rows} of {summary['length']} tokens: {out}")


def _summary(cache: Any, out: Path) -> dict[str, Any]:
    manifest = cache.manifest
    return {
        "out": str(out),
        "count": len(cache),
        "length": manifest.grid[1],
        "documents": manifest.source["documents"],
        "bytes": manifest.source["bytes"],
        "tokenizer": manifest.tokenizer_name,
    }


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def codes_of_bpe(config: Path) -> int | None:
    """How many codes ``bpe-V``, given in place of a config, asks for; None for anything else."""
    found = re.fullmatch(r"bpe-(\d{1,9})", str(config))
    return int(found[1]) if found else None


def train_text_tokenizer(codes: int, data: Path, out: Path, *, text_key: str | None, overwrite: bool) -> None:
    """Train a byte-level BPE, and write RUN/tokenizer/tokenizer.json."""
    file = out / "tokenizer" / "tokenizer.json"
    if (file.parent / "config.yaml").exists():
        raise UserError("--out holds a tokenizer of images", file.parent, "name another folder")
    if file.exists() and not overwrite:
        raise UserError("--out holds a tokenizer already", file, "name another folder, or add --overwrite")
    Gate("train-tokenizer", overwrite).check_run(out)

    from ggm_image.data.sources.text import open_text
    from ggm_image.runtime.progress import progress_bar
    from ggm_image.runtime.streams import say
    from ggm_image.tokenizers.bpe import train_bpe

    source = open_text(str(data), text_key=text_key or "text")
    total = 0

    def pieces() -> Iterator[bytes]:
        nonlocal total
        with progress_bar(total=None, unit="B", label="read", scaled=True) as advance:
            for document in source.documents():
                for piece in document.pieces:
                    total += len(piece)
                    advance(len(piece))
                    yield piece

    text = filter(None, pieces())
    first = next(text, None)
    if first is None:
        raise UserError("source must hold text", source.description, "add some")
    tokenizer = train_bpe(chain([first], text), codes, file)
    if tokenizer.codebook_size < codes:
        say(f"note: {source.description}: {total:,} bytes give no more than {tokenizer.codebook_size:,} codes")
    click.echo(f"tokenizer: {file.parent} ({tokenizer.name})")


def verify_text(src: str | None, out: Path, given: SimpleNamespace) -> None:
    """Prove that a cache of text is whole and decodes to what was encoded, and that SRC still is that."""
    from ggm_image.data.sources.text import open_text
    from ggm_image.data.text import verify_text as verify
    from ggm_image.data.token_cache.manifest import Manifest
    from ggm_image.tokenizers.registry import load_text_tokenizer

    tokenizer = load_text_tokenizer(Manifest.read(out).tokenizer_source)
    source = None if src is None else open_text(src, text_key=given.text_key or "text")
    proof = verify(out, tokenizer, source)
    if given.as_json:
        print_json({"out": str(out), **proof})
        return
    held = f"{_counted(proof['documents'], 'document')}, {proof['bytes']:,} bytes in {proof['shards']} shards"
    click.echo(f"{held}: every SHA-256 is right, and they decode to the text that was encoded: {out}")
    if src is not None:
        click.echo(f"{src} is still that text")


def is_text_cache(folder: Path) -> bool:
    """Whether a folder holds a token cache of text, finished or not; False too where its manifest cannot be read."""
    return (read_json_table(folder / "manifest.json") or {}).get("modality") == "text"


def decode_text(tokens: Path, out: Path, tokenizer_name: str | None, *, overwrite: bool, as_json: bool) -> None:
    """Decode a cache of text into one file, or into a folder with a file for each document."""
    single = out.suffix.lower() in (".txt", ".text") and not out.is_dir()
    gate = Gate("decode", overwrite, "OUT")
    if single:
        gate.check_file(out)
    else:
        gate.check_folder(out, empty=True)

    from ggm_image.data.text import decode_to_file, decode_to_folder
    from ggm_image.data.token_cache.reader import TokenCache
    from ggm_image.io.outputs import merged_folder
    from ggm_image.runtime.streams import say
    from ggm_image.tokenizers.registry import load_text_tokenizer

    cache = TokenCache.open(tokens)
    tokenizer = load_text_tokenizer(tokenizer_name or cache.manifest.tokenizer_source)
    if single:
        count = decode_to_file(cache, out, tokenizer)
        if count > 1:
            say(f"note: {count:,} documents one after the other without a separator; give a folder to keep them apart")
    else:
        with merged_folder(out) as folder:
            count = decode_to_folder(cache, folder, tokenizer)
    if as_json:
        print_json({"out": str(out), "count": count})
    else:
        click.echo(f"{_counted(count, 'document')}: {out}")
