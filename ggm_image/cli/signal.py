"""The `signal` command."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click

from ggm_image.cli.options import (
    GroupedCommand,
    device_option,
    how,
    ignored_seed_option,
    json_option,
    out_option,
    overwrite_option,
    print_json,
    what,
    where,
)
from ggm_image.cli.sampling import asked_labels, check_input, find_described_model, load, model_options, output_encoding
from ggm_image.cli.text import refuse_given, signal_of_text
from ggm_image.errors import UserError
from ggm_image.io.outputs import Gate, check_inputs_kept


@click.command(cls=GroupedCommand)
@click.argument("image")
@what(*model_options("What the image shows; no class by default."))
@how(
    click.option(
        "--level",
        type=click.FloatRange(0, 1, min_open=True, max_open=True),
        default=0.9,
        help="Expected fraction of tokens that are signal.",
    ),
    click.option("--block", type=click.IntRange(min=1), default=4, help="Tokens judged in one network call."),
    ignored_seed_option,
    device_option,
)
@where(
    out_option("signal.png", help="File for the image with the map beside it: .png, .jpg, .webp or .tif."),
    overwrite_option,
    json_option,
)
def signal(image: str, out: Path, **options: Any) -> None:
    """Show which parts of IMAGE look like noise: the model's own probability of signal, token by token.

    With a model of text IMAGE is a file of text, or the text itself. It is printed with what looks like noise in red,
    or in [[ ]] where the output is no terminal.

    --out is the image with a map beside it: the stronger the red, the less a token looks like signal.
    """
    given = SimpleNamespace(**options)
    found = find_described_model(given.model_name, None)
    if found.modality == "text":
        context = click.get_current_context()
        refuse_given(context, dict.fromkeys(("out", "overwrite", "classes"), "leave it out: text is printed"))
        signal_of_text(image, given)
        return
    # Refuse what can be refused before torch is imported and the model is loaded.
    single, encoding = output_encoding(out, None, None)
    if not single:
        raise UserError("--out must be an image file", f"got {out}", "name it X.png")
    source = Path(image)
    check_inputs_kept(out, source)
    check_input(source, "image")
    asked = asked_labels(found, given.classes)
    if asked is not None and len(asked) > 1:
        raise UserError("signal takes one class", ", ".join(given.classes), "give one, or none")
    gate = Gate("signal", given.overwrite, encoding=encoding)
    gate.check_file(out)

    from ggm_image.image.inputs import open_single_image
    from ggm_image.image.visualize import heat_map

    model, asked_for = load(given), {"level": given.level, "block": given.block}
    probability = model.signal(source, classes=None if asked is None else asked[0], **asked_for)
    details = {"model": model.name, **model.identity, "image": str(source), **asked_for}
    cell = model.tokenizer.downscale
    gate.save(out, heat_map(open_single_image(source), probability, cell), details)
    if given.as_json:
        shown = {"image": str(source), "out": str(out), "model": model.name, "level": given.level, "cell": cell}
        print_json({**shown, "signal": [[round(p, 4) for p in row] for row in probability.tolist()]})
        return
    least = probability.flatten().argsort()[:3].tolist()
    columns = probability.shape[1]
    places = ", ".join(f"row {k // columns} column {k % columns}: {probability.flatten()[k]:.2f}" for k in least)
    click.echo(f"{out}: mean {probability.mean():.2f}; least signal at {places}")
