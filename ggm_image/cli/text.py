"""``infill``, and what ``sample`` and ``signal`` do with a model of text."""

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ggm_image.cli.options import (
    GroupedCommand,
    device_option,
    how,
    json_option,
    out_option,
    overwrite_option,
    print_json,
    seed_option,
    what,
    where,
)
from ggm_image.cli.sampling import (
    TOKENIZER,
    check_input,
    find_described_model,
    load,
    sampler_options,
    shipped_model_option,
)
from ggm_image.errors import UserError
from ggm_image.io.outputs import Gate
from ggm_image.io.text_outputs import check_texts, save_texts
from ggm_image.runtime.streams import is_terminal

if TYPE_CHECKING:
    from ggm_image.pipelines.model_folder import NetworkFolder

DOUBTFUL = 0.5
"""Signal below which a byte is marked."""
_STRONG, _WEAK = {"fg": "white", "bg": "red"}, {"fg": "red"}


def refuse_given(context: click.Context, names: dict[str, str]) -> None:
    """Raise UserError for an option that was given and that text has not.

    Args:
        context: of the command.
        names: of each parameter, how to do without it.
    """
    for name, fix in names.items():
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            option = next(p.opts[-1] for p in context.command.params if p.name == name)
            raise UserError(f"{option} belongs to models of images", context.params[name], fix)


def check_no_guidance(options: dict[str, Any]) -> None:
    """Raise UserError where guidance is asked for: text has no classes."""
    for name in ("guidance", "guidance_power"):
        if options.get(name) is not None:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} needs a model with classes", options[name], "leave it out: text has none")


@click.command(cls=GroupedCommand)
@click.argument("text", required=False)
@what(
    click.option("--file", type=click.Path(path_type=Path), help="File with the text, in place of TEXT."),
    shipped_model_option("books"),
    TOKENIZER,
    click.option("-n", "count", type=click.IntRange(min=1), default=1, show_default=True, help="Number of samples."),
    click.option("--mask", metavar="CHAR", help="Every run of CHAR is a gap; four or more '_' by default."),
    click.option("--length", type=click.IntRange(min=1), help="Tokens of every gap; as its mark is long by default."),
)
@how(sampler_options, seed_option, device_option)
@where(out_option(help="Folder for the samples; they are printed by default."), overwrite_option, json_option)
def infill(
    text: str | None,
    file: Path | None,
    model_name: str,
    tokenizer: str | None,
    count: int,
    length: int | None,
    mask: str | None,
    out: Path | None,
    overwrite: bool,
    preset: str,
    seed: int,
    device: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Fill the gaps of TEXT, which are marked as ____; every other byte stays.

    A text that is longer than the rows of the model is filled in windows from left to right.
    """
    if (text is None) == (file is None):
        raise UserError("infill needs a text or a file", "both" if text else "neither", 'give "a ____ text" or --file')
    found = find_described_model(model_name, "text")
    check_no_guidance(options)
    settings = found.settings(preset, **options)
    gate = Gate("infill", overwrite)
    if out is not None:
        check_texts(gate, out)
    if file is not None:
        check_input(file, "text")
    template = file.read_bytes() if file is not None else (text or "").encode("utf-8", "surrogateescape")

    from ggm_image.pipelines.text_gaps import split_gaps

    parts = split_gaps(template, length=length, mask=mask)
    model = load(model_name, tokenizer, device)
    known, after_space = model.template(parts)
    keep_block = options["block"] is not None
    texts = model.fill(known, n=count, seed=seed, settings=settings, after_space=after_space, keep_block=keep_block)
    manifest = model.manifest(count, length=len(known), seed=seed, settings=settings)
    _give(texts, out, manifest, gate, as_json)


def sample_texts(
    found: "NetworkFolder",
    model_name: str,
    tokenizer: str | None,
    *,
    count: int,
    length: int | None,
    out: Path | None,
    overwrite: bool,
    preset: str,
    options: dict[str, Any],
    seed: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Sample texts, and print them or write them into a folder."""
    check_no_guidance(options)
    settings, gate = found.settings(preset, **options), Gate("sample", overwrite)
    if out is not None:
        check_texts(gate, out)
    model = load(model_name, tokenizer, device)
    keep_block = options["block"] is not None
    texts = model.sample(count, length=length, seed=seed, settings=settings, keep_block=keep_block)
    manifest = model.manifest(count, length=length or model.length, seed=seed, settings=settings)
    _give(texts, out, manifest, gate, as_json)


def _give(texts: list[bytes], out: Path | None, manifest: dict[str, Any], gate: Gate, as_json: bool) -> None:
    """Print texts, or write them into a folder."""
    if out is not None:
        save_texts(gate, out, texts, manifest)
    if as_json:
        shown = {"out": str(out)} if out is not None else {"texts": [_readable(text) for text in texts]}
        print_json(shown | manifest)
    elif out is not None:
        click.echo(f"{out}: {len(texts)} text{'' if len(texts) == 1 else 's'}")
    else:
        for k, text in enumerate(texts):
            if len(texts) > 1:
                click.echo(f"--- {k} ---")
            click.echo(_readable(text))


def _readable(text: bytes) -> str:
    """The text without control characters, which could write over a terminal; line breaks and tabs stay."""
    shown = text.decode("utf-8", "replace")
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in shown)


def signal_of_text(
    given: str, model_name: str, tokenizer: str | None, *, level: float, block: int, device: str | None, as_json: bool
) -> None:
    """Print a text with what looks like noise marked: in colour on a terminal, in ``[[ ]]`` elsewhere.

    Args:
        given: a file, or the text itself: something of several words, or a word without a dot or slash, that is no
            file's name.
        model_name, tokenizer, level, block, device, as_json: of the command.
    """
    path = Path(given)
    is_file = os.path.lexists(given) or (not re.search(r"\s", given.strip()) and re.search(r"[./\\]\w", given))
    if is_file:
        check_input(path, "text")
    model = load(model_name, tokenizer, device)
    text = path.read_bytes() if is_file else given.encode("utf-8", "surrogateescape")
    probability = model.signal(text, level=level, block=block)
    if as_json:
        print_json(
            {
                "text": given,
                "model": model.name,
                "level": level,
                "signal": [round(p, 4) for p in probability.tolist()],
            }
        )
        return
    click.echo(marked(text, probability.tolist(), in_colour=is_terminal(sys.stdout)))
    least = probability.argsort()[:3].tolist()
    shown = ", ".join(f"byte {k}: {probability[k]:.2f}" for k in least)
    click.echo(f"{path if is_file else 'text'}: mean {probability.mean():.2f}; least signal at {shown}", err=True)


def marked(text: bytes, probability: list[float], *, in_colour: bool) -> str:
    """A text with its doubtful parts marked.

    Args:
        text: bytes.
        probability: of each byte, that it is signal. A character of several bytes has that of the least.
        in_colour: by terminal colours, the stronger the less signal; otherwise in ``[[ ]]``.
    """
    parts: list[tuple[int, str]] = []
    place = 0
    for character in text.decode("utf-8", "surrogateescape"):
        size = len(character.encode("utf-8", "surrogateescape"))
        least = min(probability[place : place + size])
        doubt = 2 if least < DOUBTFUL / 2 else 1 if least < DOUBTFUL else 0
        doubt = min(doubt, 1) if not in_colour else doubt
        shown = _readable(character.encode("utf-8", "surrogateescape"))
        if parts and parts[-1][0] == doubt:
            parts[-1] = doubt, parts[-1][1] + shown
        else:
            parts.append((doubt, shown))
        place += size
    if in_colour:
        styles: list[dict[str, Any]] = [{}, _WEAK, _STRONG]
        return "".join(click.style(part, **styles[doubt]) if doubt else part for doubt, part in parts)
    return "".join(f"[[{part}]]" if doubt else part for doubt, part in parts)
