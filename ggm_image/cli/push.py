"""The `push` command."""

from pathlib import Path

import click

from ggm_image.cli.options import GroupedCommand, device_option, how, json_option, own_device, print_json, what, where
from ggm_image.cli.sampling import TOKENIZER, find_described_model
from ggm_image.errors import UserError
from ggm_image.io.download import offline_variable
from ggm_image.io.hub import is_repository


@click.command(cls=GroupedCommand)
@click.argument("folder", metavar="FOLDER")
@click.argument("repository", metavar="OWNER/NAME")
@what(
    TOKENIZER,
    click.option(
        "--licence", required=True, metavar="ID", help="Licence of the weights, e.g. apache-2.0, cc-by-4.0 or other."
    ),
)
@how(device_option)
@where(
    click.option("--private", is_flag=True, help="Make a new repository private."),
    click.option("--message", default="Upload a model of ggm-image", help="Commit message."),
    json_option,
)
def push(
    folder: str,
    repository: str,
    licence: str,
    tokenizer: str | None,
    private: bool,
    message: str,
    device: str | None,
    as_json: bool,
) -> None:
    """Upload a model to the Hugging Face Hub, with its tokenizer, 16 samples and a model card.

    FOLDER is a model folder or a shipped model's name. Afterwards `--model OWNER/NAME` samples from it anywhere. The
    repository is created where there is none. Log in first with `hf auth login`, or set HF_TOKEN.
    """
    if not is_repository(repository) or "@" in repository:
        raise UserError("a repository is called OWNER/NAME", repository, "for example anna/cars32")
    if variable := offline_variable():
        raise UserError(f"{variable} forbids the network", f"asked to upload to {repository}", f"unset {variable}")
    find_described_model(folder, None)

    import tempfile

    from ggm_image.io.hub import upload
    from ggm_image.pipelines.load import load_model
    from ggm_image.pipelines.model_card import write_card

    model = load_model(folder, tokenizer=tokenizer, device=own_device(device))
    with tempfile.TemporaryDirectory(prefix="ggm-image-push-") as temporary:
        saved = model.save(Path(temporary) / "model")
        write_card(model, saved, repository=repository, licence=licence)
        files = sorted(str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file())
        url, commit = upload(saved, repository, message=message, private=private)
    if as_json:
        print_json({"repository": repository, "url": url, "commit": commit, "files": files})
        return
    click.echo(f"{url}: {len(files)} files, commit {commit}")
    click.echo(f"use it with --model {repository}@{commit[:12]}")
