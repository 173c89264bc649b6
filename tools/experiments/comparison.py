"""What compare_objectives.py and compare_text.py share: training, sampling in batches, and options."""

import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import click
import torch
from experiments import Row
from jaxtyping import Int
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.pipelines.base import autocast, image_generator
from ggm_image.pipelines.model_folder import NetworkFolder
from ggm_image.runtime.memory import keep_freed_memory
from ggm_image.training.checkpoint import has_checkpoint
from ggm_image.training.run import train_generator
from ggm_image.training.trainer import GeneratorTrainer

TUNING_SEED = 1_000_000
"""Of the samples on which settings are chosen: figures are made of others."""


class Sampled(Protocol):
    """What is sampled from: a `Model` of images, or a network of text as one."""

    network: Any
    grid: tuple[int, int]
    tokenizer: Any
    device: torch.device
    half: bool

    @property
    def null_label(self) -> int: ...


Draw = Callable[[str, Sampled, int, Row, Tensor, list[torch.Generator]], Tensor]
"""draw(method, model, calls, settings, labels (b,), generators): tokens (b, l)."""


def folder_of(context: Row, task: Row) -> Path:
    """The run of a task's network."""
    return Path(context["out"]) / f"{task['network']}-{task['seed']}"


def train_network(context: Row, task: Row, trained: tuple[type[GeneratorTrainer], str], *overrides: str) -> Row:
    """Train the network of a task, or finish its training; minutes and examples that it took.

    Args:
        context: ``config``, ``tokens``, ``out``, ``device`` and ``overrides`` of the comparison.
        task: ``network``, ``seed`` and ``minutes``.
        trained: how, and the loss.
        overrides: further entries of the config.
    """
    folder, (method, objective) = folder_of(context, task), trained
    if context["device"] == "cpu":
        keep_freed_memory()
        # seconds of one thread: other work on the machine takes nothing from a network
        method = type(method.__name__, (method,), {"timer": staticmethod(time.process_time)})
    own = [f"train.max_minutes={task['minutes']}", f"train.seed={task['seed']}", f"objective.name={objective}"]
    train_generator(
        context["config"],
        context["tokens"],
        folder,
        overrides=[*context["overrides"], *own, *overrides],
        resume=has_checkpoint(folder),
        device=context["device"],
        report=lambda line: None,
        method=method,
    )
    done = NetworkFolder.read(folder / "model").config["training"]
    return {"minutes": done["minutes"], "images": done["step"] * done["train"]["batch_size"]}


def sampled_tokens(
    draw: Draw, model: Sampled, task: Row, labels: list[int], batch: int
) -> Iterator[Int[Tensor, "b l"]]:
    """The samples of a task in batches; sample k depends on the task's ``draws`` and on k alone."""
    for first in range(0, len(labels), batch):
        own = torch.tensor(labels[first : first + batch], device=model.device)
        generators = [image_generator(task["draws"], first + k) for k in range(len(own))]
        with torch.inference_mode(), autocast(model.device, model.half):
            tokens = draw(task["method"], model, task["calls"], task["settings"], own, generators)
        yield tokens


def comparison_options(
    *, config: str, calls: str, methods: Mapping[str, Any], settings: int
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options of both tools, with their own defaults."""
    added = [
        click.option("--config", default=config, show_default=True, help="Network and optimizer of all."),
        click.option("--minutes", default=10.0, show_default=True, help="Training time of every network."),
        click.option("--seeds", default=3, show_default=True, help="Networks of each kind."),
        click.option("--calls", default=calls, show_default=True, help="Network calls, with commas."),
        click.option("--methods", default=",".join(methods), show_default=True, help="Which, with commas."),
        click.option(
            "--settings-per-method",
            "settings",
            type=click.IntRange(1),
            default=settings,
            show_default=True,
            help="Sampler settings tried for each method and number of calls.",
        ),
        click.option(
            "--processes", default=2, show_default=True, help="Tasks at a time, which share the threads; 0: here."
        ),
        click.option(
            "--report-only", is_flag=True, help="Measure nothing: write the tables and the figure of what is there."
        ),
        click.option("--out", type=click.Path(path_type=Path), default="compare", show_default=True),
        click.option("--device", default="cpu", show_default=True),
        click.argument("overrides", nargs=-1, metavar="[KEY=VALUE ...]"),
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for option in reversed(added):
            command = option(command)
        return command

    return decorate


def parse_calls(calls: str) -> list[int]:
    """Numbers of network calls, with commas between them."""
    try:
        found = [int(c) for c in calls.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise UserError("calls must be whole numbers from 1 on", calls, "write e.g. 4,8,16")
    return found


def parse_methods(methods: str, known: Mapping[str, Any]) -> list[str]:
    """Names of methods, with commas between them."""
    asked = methods.split(",")
    for method in asked:
        if method not in known:
            raise UserError("no such method", method, f"choose from {', '.join(known)}")
    return asked
