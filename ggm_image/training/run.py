"""A run of `train`: validate, train, export."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal

from ggm_image.data.token_cache.reader import TokenCache
from ggm_image.errors import UserError
from ggm_image.io.config_schema import load_config, save_config
from ggm_image.io.files import held, remove_temporaries
from ggm_image.pipelines.model_folder import NetworkFolder
from ggm_image.runtime.precision import choose_precision
from ggm_image.training.batches import rows_of_rank
from ggm_image.training.checkpoint import has_checkpoint, kind_of_run, load_checkpoint
from ggm_image.training.config import GeneratorConfig
from ggm_image.training.dataset import TokenSet, fit_to_cache, load_tokens
from ggm_image.training.distributed import DistributedContext, make_fabric, processes_asked, report_once
from ggm_image.training.initialization import trained_network
from ggm_image.training.loggers import check_loggers
from ggm_image.training.logging import to_stderr
from ggm_image.training.optim import check_optimizer
from ggm_image.training.run_record import FREE_TO_CHANGE, check_resumed, generator_record, generator_record_of
from ggm_image.training.trainer import GeneratorTrainer


def train_generator(
    config: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    val: str | Path | None = None,
    resume: bool | Literal["auto"] = False,
    device: str = "auto",
    devices: int | None = None,
    nodes: int | None = None,
    report: Callable[[str], None] | None = None,
    method: "type[GeneratorTrainer] | None" = None,
) -> Path:
    """Train a generator and export it; with several processes, in each of them.

    Args:
        config, data: YAML of a `GeneratorConfig`, and the folder of a token cache.
        out: folder of the run: config.yaml, log.csv, checkpoint.pt (or checkpoint/), samples/, model/.
        overrides, val: ``key=value``; a validation token cache, in place of ``data.val``.
        resume: continue from the last checkpoint in ``out``; "auto" starts where there is none.
        device: auto, cpu, cuda, cuda:1, mps.
        devices, nodes: processes on this machine, and machines; those that torchrun or srun has started, or one.
        report: called with each line of progress, in the first process; printed to stderr by default.
        method: another way of training, as a subclass; for comparisons.

    Returns:
        The exported model's folder, ``out``/model.

    Raises:
        UserError: the run cannot be started or resumed, or has failed in this process.
        PeerFailure, KeyboardInterrupt: another process has failed; or a signal came, and everything is saved.
    """
    out, say = Path(out), report or to_stderr
    settings, context = _start(config, overrides, device, devices, nodes)
    heard = say if context.is_main_process else lambda line: None
    # "auto" is replaced by the actual precision, so that it is saved with the run.
    settings.train.precision, line = choose_precision(settings.train.precision, context.fabric.device)
    if line:
        heard(line)
    # From here on an error in one process ends all of them. Nothing is written before all checks have passed.
    with context.together():
        cache, training, val_set = _check_run(settings, Path(data), out, val, resume, context.world_size, heard)
        if context.is_main_process:
            check_loggers(settings.train.logger)
    make, names = method or GeneratorTrainer, cache.manifest.class_names
    record = generator_record(settings, class_names=names, training=training, val_set=val_set, method=make.__name__)
    checkpoint = _checkpoint_of(record, out, context, heard) if resume and has_checkpoint(out) else None
    with ExitStack() as until_the_end:
        with context.together():
            if context.is_main_process:
                _claim(out, settings, until_the_end)
        trainer = make(settings, cache.manifest, training, val_set, out, device=device, report=report, context=context)
        trainer.record = record
        with context.together():
            if checkpoint is not None:
                trainer.load_state_dict(checkpoint)
                del checkpoint  # as large as the whole training state: freed before training
        trainer.fit()
        return out / "model"


def _start(
    config: str | Path, overrides: Sequence[str], device: str, devices: int | None, nodes: int | None
) -> tuple[GeneratorConfig, DistributedContext]:
    """Read the config and start the processes."""
    # The processes have not met yet: each one finds the same errors, and only the first prints them.
    with report_once():
        settings = load_config(GeneratorConfig, config, overrides)
        train, (devices, nodes) = settings.train, processes_asked(devices, nodes)
        fabric = make_fabric(device, train.precision, devices=devices, nodes=nodes, strategy=train.strategy)
    return settings, DistributedContext(fabric)


def _claim(out: Path, settings: GeneratorConfig, until_the_end: ExitStack) -> None:
    """Lock the run's folder, which only the main process writes to, and save the config there."""
    out.mkdir(parents=True, exist_ok=True)
    until_the_end.enter_context(held(out))
    remove_temporaries(out, out / "model", out / "samples")
    save_config(out / "config.yaml", settings)


def _checkpoint_of(
    record: Mapping[str, Any], out: Path, context: DistributedContext, say: Callable[[str], None]
) -> dict[str, Any]:
    """The checkpoint in ``out``, which must be of the run that ``record`` describes."""
    # Not inside `together`: loading a checkpoint communicates, and `together` allows work without communication only.
    with report_once():
        checkpoint = load_checkpoint(out, context)
    with context.together():
        _check_resumed(checkpoint, record, out, say)
    return checkpoint


def _check_run(
    settings: GeneratorConfig,
    data: Path,
    out: Path,
    val: str | Path | None,
    resume: bool | str,
    processes: int,
    say: Callable[[str], None],
) -> tuple[TokenCache, TokenSet, TokenSet]:
    """Validate the run before anything is written, and load its data."""
    if val is not None:
        settings.data.val = str(val)
    if out.exists() and not out.is_dir():
        raise UserError("--out must be a folder", out, "choose another name")
    if has_checkpoint(out) and not resume:
        raise UserError("the folder holds a run", out, "add --resume to continue it, or choose another folder")
    if resume is True and not has_checkpoint(out):
        load_checkpoint(out)  # says so
    check_optimizer(settings.train.optimizer, sharded=settings.train.strategy == "fsdp" and processes > 1)
    rows_of_rank(settings.train.batch_size, 0, processes, settings.train.accumulate)
    cache = TokenCache.open(data)
    fit_to_cache(settings, cache.manifest, data)
    if settings.start and not has_checkpoint(out):
        trained_network(settings.start, settings.network, cache.manifest)
    return cache, *load_tokens(settings, cache, say)


def _check_resumed(
    checkpoint: Mapping[str, Any], record: Mapping[str, Any], out: Path, say: Callable[[str], None]
) -> None:
    """Raise UserError unless a checkpoint is of the run that ``record`` describes; report what has changed."""
    with kind_of_run("train"):
        before = generator_record_of(checkpoint)
    if "data.class_names" not in before:
        with suppress(UserError):  # the model beside an earlier version's checkpoint has the names
            before["data.class_names"] = NetworkFolder.read(out / "model").class_names
    fix = f"resume with the run's own config and data, or start a new run with start={out / 'model'}"
    free = (*FREE_TO_CHANGE, *(name for name in record if name.startswith("presets.")))
    check_resumed(before, record, free, say, fix)
