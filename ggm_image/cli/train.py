"""``train`` and ``train-tokenizer``."""

from pathlib import Path

import click

from ggm_image.cli.options import SEED, device_option, overwrite_option, resolve_device
from ggm_image.configs import find_config
from ggm_image.errors import UserError
from ggm_image.outputs import Gate


@click.command("train")
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--data", type=click.Path(path_type=Path), required=True, metavar="TOKENS", help="Token cache to learn.")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="RUN", help="Folder of the run.")
@click.option("--val", type=click.Path(path_type=Path), metavar="TOKENS", help="Token cache of held-out pictures.")
@click.option("--seed", type=SEED, help="Seed of the run; the same as train.seed=N.")
@click.option("--resume", is_flag=True, help="Go on from the run's last checkpoint.")
@click.option("--auto-resume", is_flag=True, help="The same, or start where there is none: for what is started again.")
@click.option("--devices", type=click.IntRange(1), metavar="N", help="Processes a machine; torchrun and srun say it.")
@click.option("--nodes", type=click.IntRange(1), metavar="M", help="Machines; torchrun and srun say it.")
@click.option("--strategy", type=click.Choice(["auto", "ddp", "fsdp"]), help="The same as train.strategy=NAME.")
@click.option("--dry-run", is_flag=True, help="Only say what the run would cost: parameters, memory, time.")
@click.option("--tflops", type=float, metavar="X", help="For --dry-run: rate of a device's matrix products; measured.")
@overwrite_option
@device_option
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
    entries can be changed with KEY=VALUE, for example train.steps=1000; start=MODEL goes on from a trained model. RUN
    gets config.yaml, log.csv, samples, checkpoints, and the model in RUN/model.
    """
    if seed is not None:
        overrides = (*overrides, f"train.seed={seed}")
    if strategy is not None:
        overrides = (*overrides, f"train.strategy={strategy}")
    if dry_run:
        _forecast(config, data, overrides, resolve_device(device), devices or 1, nodes or 1, tflops)
        return
    config = find_config(config)
    Gate("train", overwrite).check_run(out)

    from ggm_image.training.crew import is_first
    from ggm_image.training.generator import train_generator

    model = train_generator(
        config,
        data,
        out,
        overrides=overrides,
        val=val,
        resume="auto" if auto_resume else resume,
        device=resolve_device(device),
        devices=devices,
        nodes=nodes,
    )
    if is_first():
        click.echo(f"model: {model}")


def _forecast(
    config: Path, data: Path, overrides: tuple[str, ...], device: str, devices: int, nodes: int, tflops: float | None
) -> None:
    from ggm_image.data.token_cache import TokenCache
    from ggm_image.training.config import GeneratorConfig, load_config
    from ggm_image.training.forecast import forecast, lines
    from ggm_image.training.training_tokens import fit_to_cache

    settings = load_config(GeneratorConfig, config, overrides)
    cache = TokenCache.open(data)
    fit_to_cache(settings, cache.manifest, data)
    cost = forecast(settings, device=device, devices=devices, nodes=nodes, rate=tflops and tflops * 1e12)
    epochs = cost.steps * settings.train.batch_size / max(1, len(cache))
    click.echo("\n".join([*lines(cost), f"the data     {len(cache):,} rows, seen {epochs:,.3g} times"]))


@click.command("plot")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="A .png file; curves.png in the run's folder by default.")
@overwrite_option
def plot(run: Path, out: Path | None, overwrite: bool) -> None:
    """Draw the training curves of RUN, finished or not."""
    from ggm_image.training.plots import plot_run

    if out is not None and out.suffix.lower() != ".png":
        raise UserError("--out must be a .png file", f"got {out}", "name it X.png")
    if out is not None:
        Gate("plot", overwrite).check_file(out)
    click.echo(str(plot_run(run, out)))


@click.command("train-tokenizer")
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--data", type=click.Path(path_type=Path), required=True, metavar="SRC", help="Image folder or tar.")
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="RUN", help="Folder of the run.")
@click.option("--seed", type=SEED, help="Seed of the run; the same as train.seed=N.")
@click.option("--resume", is_flag=True, help="Go on from the run's last checkpoint.")
@overwrite_option
@device_option
def train_tokenizer(
    config: Path,
    overrides: tuple[str, ...],
    data: Path,
    out: Path,
    seed: int | None,
    resume: bool,
    overwrite: bool,
    device: str | None,
) -> None:
    """Train a VQGAN tokenizer on pictures, as CONFIG says, in one process.

    CONFIG is a YAML file or the name of a shipped config, for example tokenizer_cifar10; any of its entries can be
    changed with KEY=VALUE. RUN gets config.yaml, log.csv, pictures, checkpoints, and the tokenizer in RUN/tokenizer.
    """
    config = find_config(config)
    Gate("train-tokenizer", overwrite).check_run(out)

    from ggm_image.training.tokenizer import train_tokenizer as run

    if seed is not None:
        overrides = (*overrides, f"train.seed={seed}")
    tokenizer = run(config, data, out, overrides=overrides, resume=resume, device=resolve_device(device))
    click.echo(f"tokenizer: {tokenizer}")
