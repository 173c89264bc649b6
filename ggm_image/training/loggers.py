"""Loggers for a run's metrics and images besides ``log.csv``: TensorBoard, Weights & Biases.

A new logger is one entry of `LOGGERS`; it is then a value of ``train.logger``.
"""

import os
import uuid
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from ggm_image.errors import UserError, printable
from ggm_image.io.download import is_offline
from ggm_image.io.files import write_text
from ggm_image.validation import FIX

LOGIN_SECONDS, INIT_SECONDS = 60, 60
"""How long wandb may ask for a key on a terminal, and wait for its server, before training begins."""


class Logger(Protocol):
    """A place where figures and images of a run are shown."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add values that were measured at a step."""

    def show(self, step: int, name: str, path: Path) -> None:
        """Add an image (PNG) or a text (any other file)."""

    def close(self) -> None:
        """Write everything out."""


class TensorBoard:
    """Event files in ``tensorboard/`` of the run.

    Args:
        step: that the run is resumed from, 0 for a new one; what was logged later is dropped.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    @staticmethod
    def open(folder: Path, step: int, config: Mapping[str, Any], say: Callable[[str], None]) -> Logger | None:
        try:
            return TensorBoard(folder, step)
        except ImportError:
            say("TensorBoard is not installed: the run is logged without it")
        except UnicodeEncodeError:
            say("TensorBoard needs a folder whose name is UTF-8: the run is logged without it")
        return None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def show(self, step: int, name: str, path: Path) -> None:
        if path.suffix == ".png":
            import numpy as np
            from PIL import Image

            with Image.open(path) as image:
                self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")
        else:
            self._writer.add_text(name, path.read_text(encoding="utf-8", errors="replace"), step)

    def close(self) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases; its own variables (``WANDB_MODE``, ``WANDB_PROJECT``, ...) are respected.

    Where the network is forbidden (see `ggm_image.io.download`) and ``WANDB_MODE`` is not set, the run is recorded
    offline. A resumed run continues the same run, whose id is in ``wandb/id.txt``.
    """

    def __init__(self, wandb: Any, folder: Path, step: int, config: Mapping[str, Any]) -> None:
        id_file = folder / "wandb" / "id.txt"
        if not (step and id_file.is_file()):
            write_text(id_file, os.environ.get("WANDB_RUN_ID") or uuid.uuid4().hex[:8])
        self._wandb = wandb
        self._run = wandb.init(
            dir=str(folder),
            id=id_file.read_text(encoding="utf-8").strip(),
            resume="allow",
            project=os.environ.get("WANDB_PROJECT") or "ggm-image",
            name=os.environ.get("WANDB_NAME") or printable(folder.resolve().name),
            mode=wandb_mode(),
            config=dict(config),
            # its console capture would replace stdout and stderr under the progress bars
            settings=wandb.Settings(silent=True, console="off", init_timeout=INIT_SECONDS),
        )
        self._run.define_metric("*", step_metric="step")

    @staticmethod
    def check() -> None:
        """Raise UserError unless wandb is installed and, where it is to be online, has an account."""
        wandb = _import_wandb()
        if wandb_mode() in ("offline", "disabled", "dryrun"):
            return
        try:
            wandb.login(timeout=LOGIN_SECONDS)
        except Exception as error:  # its own classes, and those of the HTTP library that it uses
            raise _no_wandb(error) from error

    @staticmethod
    def open(folder: Path, step: int, config: Mapping[str, Any], say: Callable[[str], None]) -> Logger | None:
        wandb = _import_wandb()
        try:
            logger = WandB(wandb, folder, step, config)
        except Exception as error:
            raise _no_wandb(error) from error
        if wandb_mode() == "offline":
            say(f"wandb: recorded offline; upload it with `wandb sync {folder / 'wandb'}/offline-run-*`")
        elif url := logger._run.url:
            say(f"wandb: {url}")
        return logger

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def show(self, step: int, name: str, path: Path) -> None:
        if path.suffix == ".png":
            value = self._wandb.Image(str(path))
        else:
            import html

            text = html.escape(path.read_text(encoding="utf-8", errors="replace"))
            value = self._wandb.Html(f"<pre>{text}</pre>")
        self._run.log({"step": step, name: value})

    def close(self) -> None:
        self._run.finish()


def wandb_mode() -> str | None:
    """The mode of ``WANDB_MODE``; offline where the network is forbidden; else None: as wandb's own settings say."""
    return os.environ.get("WANDB_MODE") or ("offline" if is_offline() else None)


def _import_wandb() -> Any:
    try:
        wandb = import_module("wandb")
    except ImportError as error:
        fix = "pip install 'ggm-image[wandb]', or leave wandb out of train.logger"
        raise UserError("train.logger=wandb needs the package wandb", "not installed", fix) from error
    except Exception as error:  # an installation that does not fit its dependencies
        raise _no_wandb(error) from error
    if not hasattr(wandb, "init"):  # a folder `wandb` of earlier runs looks like a package
        fix = "pip install 'ggm-image[wandb]', or run the command in another folder"
        raise UserError("train.logger=wandb needs the package wandb", "found a folder of that name", fix)
    return wandb


def _no_wandb(error: Exception) -> UserError:
    why = printable(error) or type(error).__name__
    fix = "run `wandb login`, set WANDB_MODE=offline, or leave wandb out of train.logger"
    return UserError("train.logger=wandb cannot be used", why, fix)


LOGGERS: dict[str, Callable[[Path, int, Mapping[str, Any], Callable[[str], None]], Logger | None] | None] = {
    "csv": None,  # always written, see `logging.MetricLogger`
    "tensorboard": TensorBoard.open,
    "wandb": WandB.open,
}
"""Values of ``train.logger``: how each is opened, from the run's folder, step, config and a function for messages."""


def logger_names(value: Any) -> list[str]:
    """The loggers that ``train.logger`` names: a list, or names separated by commas."""
    names = value.split(",") if isinstance(value, str) else value
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        found = list(dict.fromkeys(name.strip() for name in names))
        if set(found) <= LOGGERS.keys():
            return found
    raise UserError(f"train.logger must be one or more of {', '.join(LOGGERS)}", value, FIX)


def check_loggers(value: Any) -> None:
    """Raise UserError, before anything is written, where a logger of ``train.logger`` cannot be used."""
    if "wandb" in logger_names(value):
        WandB.check()
