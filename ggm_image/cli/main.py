"""``ggm-image``: finds the command, and turns every error that a user can fix into one line.

Commands are imported when they are run, so that ``--help`` answers at once.
"""

import contextlib
import errno
import io
import os
import signal
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from types import FrameType
from typing import Any, ClassVar

import click

from ggm_image.errors import PeerFailure, UserError, printable, suggest
from ggm_image.runtime.streams import say, standard_streams

COMMANDS = {
    "encode": ("ggm_image.cli.encode:encode", "Encode images or text into a token cache."),
    "decode": ("ggm_image.cli.encode:decode", "Decode a token cache into PNG files or text."),
    "train": ("ggm_image.cli.train:train", "Train a generator on a token cache."),
    "train-tokenizer": ("ggm_image.cli.train:train_tokenizer", "Train a VQGAN tokenizer on images."),
    "train-perceptual": ("ggm_image.cli.train:train_perceptual", "Train a small perceptual loss for train-tokenizer."),
    "plot": ("ggm_image.cli.train:plot", "Plot the training curves of a run."),
    "sample": ("ggm_image.cli.sample:sample", "Sample images or texts."),
    "inpaint": ("ggm_image.cli.inpaint:inpaint", "Inpaint the masked part of an image."),
    "infill": ("ggm_image.cli.text:infill", "Fill the gaps of a text."),
    "signal": ("ggm_image.cli.signal:signal", "Show what looks like noise to the model."),
    "demo": ("ggm_image.cli.demo:demo", "Open a page to sample and inpaint in the browser."),
    "fid": ("ggm_image.cli.evaluate:fid", "Fréchet distance between two sets of images."),
    "models": ("ggm_image.cli.models:models", "List the shipped models."),
    "push": ("ggm_image.cli.push:push", "Upload a model to the Hugging Face Hub."),
    "tokenizers": ("ggm_image.cli.tokenizers:tokenizers", "List the known tokenizers, and what is on disk."),
    "configs": ("ggm_image.cli.configs:configs", "List the shipped configs, or copy one."),
    "convert": ("ggm_image.cli.tokenizers:convert", "Write a published tokenizer as safetensors."),
}
"""Name of each command: where it is, and its line in ``ggm-image --help``."""

_FIXES = {
    errno.ENOENT: "check the path",
    errno.EACCES: "check the permissions",
    errno.EPERM: "check the permissions",
    errno.EROFS: "choose a folder that can be written to",
    errno.ENOSPC: "make room on the disk and run the command again",
    errno.EDQUOT: "make room on the disk and run the command again",
    errno.ENOTDIR: "check the path: part of it is a file",
    errno.EISDIR: "give a file, not a folder",
    errno.ENAMETOOLONG: "choose a shorter name",
}


class LazyGroup(click.Group):
    """A group whose commands are imported only when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, function = COMMANDS[cmd_name][0].split(":")
        command = getattr(import_module(module), function)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            fix = suggest(args[0], COMMANDS, "see ggm-image --help", cutoff=0.5)
            raise UserError("no such command", args[0], fix)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        import ggm_image

        click.echo(f"ggm-image {ggm_image.__version__}")
        click.echo(_torch_version())
        click.echo(f"device {_device()}")
        ctx.exit()


def _torch_version() -> str:
    """torch's version, which names the build (``+cpu``, ``+cu128``), and Python's."""
    from importlib import metadata

    try:
        torch = metadata.version("torch")
    except metadata.PackageNotFoundError:
        torch = "not installed"
    return f"torch {torch}, Python {sys.version.split()[0]}"


def _device() -> str:
    """The device that commands use without ``--device``, and what it is; asks torch, so it takes seconds."""
    try:
        import torch
    except Exception as error:  # --version must also work where the installation is broken
        return f"unknown: torch cannot be imported ({printable(error)})"
    from ggm_image.runtime.devices import resolve_device

    device = resolve_device()
    if device == "cuda":
        return f"cuda ({', '.join(torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count()))})"
    return f"{device} ({torch.get_num_threads()} threads)"


@click.group(cls=LazyGroup, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the versions of ggm-image, torch and Python, and the device.",
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Glauber generative model for images: encode, train, sample, inpaint, score."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command of ``ggm-image`` and return its exit code, see `run`."""
    return run(cli, argv, name="ggm-image")


PLUGINS = "GGM_IMAGE_PLUGINS"
"""Environment variable with modules, separated by commas, that are imported before any command."""


def _import_plugins() -> None:
    """Import the modules of `PLUGINS`, which add entries to the registries."""
    for name in filter(None, map(str.strip, os.environ.get(PLUGINS, "").split(","))):
        try:
            import_module(name)
        except Exception as error:
            got = f"{name}: {error}" if isinstance(error, ImportError) else f"{name}: {type(error).__name__}: {error}"
            raise UserError("a plugin cannot be imported", got, f"check {PLUGINS} and PYTHONPATH") from error


class Terminated(BaseException):
    """SIGTERM: a cluster takes the machine back, and gives some seconds for what must be removed or written."""


class _Signals:
    """Ctrl-C and SIGTERM raise an exception, and the last of them is remembered.

    The exception may be raised in Python code that C code has called, which then reports an error of its own.
    """

    EXCEPTIONS: ClassVar[dict[int, type[BaseException]]] = {
        signal.SIGINT: KeyboardInterrupt,
        signal.SIGTERM: Terminated,
    }

    def __init__(self) -> None:
        self.exception: BaseException | None = None
        self._before: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.exception = self.EXCEPTIONS[number]()
        raise self.exception

    def __enter__(self) -> "_Signals":
        for number in self.EXCEPTIONS:
            if signal.getsignal(number) != signal.SIG_IGN:  # what nohup and a shell's "&" have asked for
                with contextlib.suppress(ValueError):  # not in the main thread, where Python does not allow handlers
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            if handler is not None:  # one that C code has set cannot be set again from here
                signal.signal(number, handler)


def run(command: click.Command, argv: Sequence[str] | None = None, *, name: str | None = None) -> int:
    """Run a command and return its exit code: 0, 2 for an error of the user, 130 for Ctrl-C, 143 for SIGTERM.

    Training turns both signals into a checkpoint and ends with 130.
    """
    with standard_streams():
        return _run(command, argv, name)


def _run(command: click.Command, argv: Sequence[str] | None, name: str | None) -> int:
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of files that it reads all the same
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be text
    with _Signals() as signals:
        try:
            _import_plugins()
            result = command.main(args=None if argv is None else list(argv), prog_name=name, standalone_mode=False)
            sys.stdout.flush()
            return result if isinstance(result, int) else 0
        except BaseException as error:
            if os.environ.get("GGM_IMAGE_DEBUG", "") not in ("", "0"):
                import traceback

                traceback.print_exc()
            code, line = _explain(signals.exception or error)
            if code is None:
                raise
            if line:
                say(line, every_process=True)
            return code


def _explain(error: BaseException) -> tuple[int | None, str]:
    """Exit code and line for an error; no code for what is a bug and deserves its traceback."""
    if isinstance(error, UserError):
        return 2, f"error: {error}"
    if isinstance(error, PeerFailure):
        return error.code, ""
    if isinstance(error, BrokenPipeError):
        # The reader of our output has closed the pipe. Python would raise again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1, ""
    if isinstance(error, OSError):
        fix = _FIXES.get(error.errno or 0, "check the path and the disk")
        named = printable(error.filename or "no file named")
        return 2, f"error: {printable(error.strerror or error)} ({named}); {fix}"
    if isinstance(error, Terminated):
        return 143, "terminated"
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return 130, "interrupted"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        why = printable(str(error).split(". ")[0] or "the machine has too little")
        return 2, f"error: out of memory ({why}); use a smaller batch or image, or another --device"
    if isinstance(error, click.ClickException):
        return 2, f"error: {_usage(error)}"
    return None, ""


def _usage(error: click.ClickException) -> str:
    context: Any = getattr(error, "ctx", None)
    see = f"see {context.command_path if context else 'ggm-image'} --help"
    if isinstance(error, click.NoSuchOption):
        known = [name for p in context.command.params for name in p.opts] if context else []
        return f"no such option ({printable(error.option_name)}); {suggest(error.option_name, known, see, cutoff=0.5)}"
    if isinstance(error, click.MissingParameter):
        kind = error.param_type or (error.param.param_type_name if error.param else "parameter")
        return f"{kind} is missing ({_hint(error)}); {see}"
    if isinstance(error, click.BadParameter):
        return f"{printable(error.message.rstrip('.'))} ({_hint(error)}); {see}"
    if isinstance(error, click.BadOptionUsage):
        return f"option is used wrongly ({printable(error.option_name)}: {printable(error.message.rstrip('.'))}); {see}"
    message = printable(error.format_message().rstrip("."))
    return f"{message[:1].lower()}{message[1:]} ({context.command_path if context else 'usage'}); {see}"


def _hint(error: click.BadParameter) -> str:
    if error.param_hint:
        return error.param_hint if isinstance(error.param_hint, str) else ", ".join(error.param_hint)
    if error.param is None:
        return "unnamed"
    return error.param.opts[0] if error.param.param_type_name == "option" else error.param.human_readable_name


if __name__ == "__main__":
    sys.exit(main())
