"""``train``, ``plot``, ``train-tokenizer`` and ``train-perceptual``."""

from collections.abc import Callable
from pathlib import Path

import click

from ggm_image.cli.options import (
    SEED,
    F,
    GroupedCommand,
    batch_size_option,
    device_option,
    how,
    out_option,
    overwrite_option,
    seed_option,
    what,
    where,
)
from ggm_image.cli.text_tokens import codes_of_bpe, refuse_image_training_options, train_text_tokenizer
from ggm_image.errors import UserError
from ggm_image.io.configs import find_config
from ggm_image.io.outputs import Gate
from ggm_image.runtime.devices import resolve_device
from ggm_image.runtime.streams import say


def data_option(metavar: str, text: str) -> Callable[[F], F]:
    """``--data``, passed as ``data: Path``."""
    return click.option("--data", type=click.Path(path_type=Path), required=True, metavar=metavar, help=text)


RUN = click.option("--out", type=click.Path(path_type=Path), required=True, metavar="RUN", help="Folder of the run.")
RUN_SEED = click.option("--seed", type=SEED, help="Seed of the run; the same as train.seed=N.")
RESUME = click.option("--resume", is_flag=True, help="Resume from the run's last checkpoint.")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Only print what the run would cost: parameters, memory, time.")


@click.command("train", cls=GroupedCommand)
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@what(
    data_option("TOKENS", "Token cache to train on."),
    click.option("--val", type=click.Path(path_type=Path), metavar="TOKENS", help="Token cache of validation images."),
    DRY_RUN,
)
@how(
    RUN_SEED,
    RESUME,
    click.option("--auto-resume", is_flag=True, help="Resume where there is a checkpoint, otherwise start."),
    click.option(
        "--devices", type=click.IntRange(1), metavar="N", help="Processes per machine; set by torchrun, srun."
    ),
    click.option("--nodes", type=click.IntRange(1), metavar="M", help="Number of machines; set by torchrun and srun."),
    click.option("--strategy", type=click.Choice(["auto", "ddp", "fsdp"]), help="The same as train.strategy=NAME."),
    click.option("--tflops", type=float, metavar="X", help="For --dry-run: matrix product rate; measured by default."),
    device_option,
)
@where(RUN, overwrite_option)
def train(
    config: Path,
    overrides: tuple[str, ...],
    data: Path,
    out: Path,
    val: Path | None,
    seed: int | None,
    resume: bool,
    auto_resume: bool,
    devices: int | None,
    nodes: int | None,
    strategy: str | None,
    dry_run: bool,
    tflops: float | None,
    overwrite: bool,
    device: str | None,
) -> None:
    """Train a generator on a token cache, as CONFIG says.

    CONFIG is a YAML file or the name of a shipped config (`ggm-image configs`), for example cifar10; any of its
    entries can be changed with KEY=VALUE, for example train.steps=1000; start=MODEL starts from a trained model. RUN
    gets config.yaml, log.csv, samples, checkpoints, and the model in RUN/model.
    """
    if seed is not None:
        overrides = (*overrides, f"train.seed={seed}")
    if strategy is not None:
        overrides = (*overrides, f"train.strategy={strategy}")
    config = find_config(config)
    if dry_run:
        _forecast(config, data, overrides, _training_device(device), devices or 1, nodes or 1, tflops)
        return
    Gate("train", overwrite).check_run(out)

    from ggm_image.training.distributed import is_main_process
    from ggm_image.training.run import train_generator

    chosen = _training_device(device)

    model = train_generator(
        config,
        data,
        out,
        overrides=overrides,
        val=val,
        resume="auto" if auto_resume else resume,
        device=chosen,
        devices=devices,
        nodes=nodes,
    )
    if is_main_process():
        click.echo(f"model: {model}")


def _training_device(device: str | None) -> str:
    """As `resolve_device`; on a CPU this process, which does nothing else, keeps the memory that it frees."""
    from ggm_image.runtime.memory import keep_freed_memory

    chosen = resolve_device(device)
    if chosen == "cpu":
        keep_freed_memory()
    return chosen


def _forecast(
    config: Path, data: Path, overrides: tuple[str, ...], device: str, devices: int, nodes: int, tflops: float | None
) -> None:
    import torch

    from ggm_image.data.token_cache.reader import TokenCache
    from ggm_image.io.config_schema import load_config
    from ggm_image.runtime.precision import choose_precision
    from ggm_image.training.config import GeneratorConfig
    from ggm_image.training.cost_estimate import estimate_cost, lines
    from ggm_image.training.dataset import fit_to_cache
    from ggm_image.training.optim import check_optimizer

    settings = load_config(GeneratorConfig, config, overrides)
    cache = TokenCache.open(data)
    fit_to_cache(settings, cache.manifest, data)
    check_optimizer(settings.train.optimizer, sharded=settings.train.strategy == "fsdp" and devices * nodes > 1)
    if line := choose_precision(settings.train.precision, torch.device(device))[1]:
        click.echo(line, err=True)
    rate = tflops and tflops * 1e12
    cost = estimate_cost(settings, device=device, devices=devices, nodes=nodes, rate=rate, report=say)
    epochs = cost.steps * settings.train.batch_size / max(1, len(cache))
    click.echo("\n".join([*lines(cost), f"the data     {len(cache):,} rows, seen {epochs:,.3g} times"]))


@click.command("plot", cls=GroupedCommand)
@click.argument("run", type=click.Path(path_type=Path))
@where(out_option(help="PNG file; curves.png in the run's folder by default."), overwrite_option)
def plot(run: Path, out: Path | None, overwrite: bool) -> None:
    """Plot the training curves of RUN, finished or not."""
    from ggm_image.training.plots import plot_run

    if out is not None and out.suffix.lower() != ".png":
        raise UserError("--out must be a .png file", f"got {out}", "name it X.png")
    if out is not None:
        Gate("plot", overwrite).check_file(out)
    click.echo(str(plot_run(run, out)))


@click.command("train-tokenizer", cls=GroupedCommand)
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@what(
    data_option("SRC", "Image folder or tar to train on; for bpe-V any text that encode reads."),
    click.option("--text-key", metavar="KEY", help="For bpe-V: field with the text of JSON lines; 'text' by default."),
    DRY_RUN,
)
@how(
    RUN_SEED,
    RESUME,
    click.option("--force", is_flag=True, help="Start although the run seems to need more memory than is available."),
    device_option,
)
@where(RUN, overwrite_option)
def train_tokenizer(
    config: Path,
    overrides: tuple[str, ...],
    data: Path,
    out: Path,
    seed: int | None,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    force: bool,
    device: str | None,
    text_key: str | None,
) -> None:
    """Train a VQGAN tokenizer on images, as CONFIG says, in one process; or a BPE of V codes on text, if it is bpe-V.

    CONFIG is a YAML file or the name of a shipped config, for example tokenizer_cifar10; any of its entries can be
    changed with KEY=VALUE. RUN gets config.yaml, log.csv, images, checkpoints, and the tokenizer in RUN/tokenizer.
    """
    if (codes := codes_of_bpe(config)) is not None:
        refuse_image_training_options(click.get_current_context())
        train_text_tokenizer(codes, data, out, text_key=text_key, overwrite=overwrite)
        return
    if text_key is not None:
        raise UserError("--text-key belongs to text", text_key, "leave it out, or train bpe-4096")
    config = find_config(config)
    if not dry_run:
        Gate("train-tokenizer", overwrite).check_run(out)
    if seed is not None:
        overrides = (*overrides, f"train.seed={seed}")
    if dry_run:
        _forecast_tokenizer(config, data, overrides, resolve_device(device))
        return

    from ggm_image.training.vqgan.run import train_tokenizer as run

    chosen = _training_device(device)
    tokenizer = run(config, data, out, overrides=overrides, resume=resume, device=chosen, force=force)
    click.echo(f"tokenizer: {tokenizer}")


def _forecast_tokenizer(config: Path, data: Path, overrides: tuple[str, ...], device: str) -> None:
    import torch

    from ggm_image.data.sources.image_files import find_images
    from ggm_image.runtime.memory import available_memory
    from ggm_image.runtime.precision import choose_precision
    from ggm_image.training.vqgan.cost_estimate import GIB, estimate_tokenizer_cost, lines
    from ggm_image.training.vqgan.run import MEMORY_LIMIT, load_tokenizer_config

    settings, images = load_tokenizer_config(config, overrides), len(find_images(data))
    if line := choose_precision(settings.train.precision, torch.device(device))[1]:
        click.echo(line, err=True)
    cost = estimate_tokenizer_cost(settings, images=images, kept_bytes=MEMORY_LIMIT, device=device)
    click.echo("\n".join(lines(cost, images)))
    if (available := available_memory(torch.device(device))) is not None:
        fits = cost.largest_batch(available)
        click.echo(f"available    {available / GIB:,.2f} GiB: room for train.batch_size={fits} at most")


@click.command("train-perceptual", cls=GroupedCommand)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@what(click.option("--image-size", type=click.IntRange(8, 1024), default=32, help="Side of an image in pixels."))
@how(
    click.option("--minutes", type=click.FloatRange(0, min_open=True), default=4.0, help="Minutes of training."),
    batch_size_option("Images in one step.", 128),
    click.option("--learning-rate", type=click.FloatRange(0, min_open=True), default=2e-3, help="Peak learning rate."),
    seed_option,
    device_option,
)
@where(overwrite_option)
def train_perceptual(
    source: Path,
    out: Path,
    image_size: int,
    minutes: float,
    batch_size: int,
    learning_rate: float,
    overwrite: bool,
    seed: int,
    device: str | None,
) -> None:
    """Train a small perceptual loss for train-tokenizer on the class folders of SOURCE, and write it to OUT.

    OUT is a .safetensors file. A classifier learns the classes, and its hidden layers are the features. Use it as
    loss.perceptual_weights=OUT; it is no part of the tokenizer.
    """
    if out.suffix != ".safetensors":
        raise UserError("OUT must be a .safetensors file", out, f"name it {out.stem or 'perceptual'}.safetensors")
    Gate("train-perceptual", overwrite).check_file(out)

    from ggm_image.training.vqgan.perceptual_classifier import train_classifier

    train_classifier(
        source,
        out,
        image_size=image_size,
        minutes=minutes,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        device=_training_device(device),
    )
    click.echo(f"perceptual loss: {out}")
