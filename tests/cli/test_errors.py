"""The frame of every command: errors in one line, exit codes, signals, and help that is quick."""

import os
import signal
import subprocess
import sys
import time

import click
import pytest
import torch

from ggm_image.cli import main as module
from ggm_image.cli.main import COMMANDS, main
from ggm_image.errors import UserError
from tests.cli.commands import refused


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["encod"], ["no such command (encod); did you mean encode?"]),
        (["zzz"], ["no such command (zzz); see ggm-image --help"]),
        (["encode"], ["argument is missing (SRC); see ggm-image encode --help"]),
        (["encode", "a", "b"], ["option is missing (--tokenizer)"]),
        (["encode", "a", "b", "--tokeniser", "x"], ["no such option (--tokeniser); did you mean --tokenizer?"]),
        (["encode", "a", "b", "--image-size", "big", "--tokenizer", "x"], ["'big' is not a valid", "--image-size"]),
        (["encode", "a", "b", "--image-size", "0", "--tokenizer", "x"], ["--image-size"]),
        (["encode", "a", "b", "c", "--tokenizer", "x"], ["unexpected extra argument"]),
        (["decode", "a", "b", "--seed"], ["--seed"]),
        (["--nonsense"], ["no such option (--nonsense)"]),
    ],
)
def test_usage_errors_are_one_line(arguments: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, main(arguments), *parts)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("a", "b", "c"), 2, "error: a (b); c"),
        (FileNotFoundError(2, "No such file or directory", "x.png"), 2, "(x.png); check the path"),
        (PermissionError(13, "Permission denied", "x.png"), 2, "(x.png); check the permissions"),
        (OSError(28, "No space left on device"), 2, "make room on the disk"),
        (MemoryError(), 2, "error: out of memory"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_and_exit_codes(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(module.cli, "main", fail)
    assert main([]) == code
    captured = capsys.readouterr().err
    assert line in captured
    assert captured.count("\n") == 1
    monkeypatch.setenv("GGM_IMAGE_DEBUG", "1")
    assert main([]) == code
    assert "Traceback" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(module.cli, "main", fail)
    with pytest.raises(ZeroDivisionError):
        main([])


# Seen to fail without the memory of the signal: exit code 2 and "weights must be whole", as torch's C code had it.
@pytest.mark.parametrize(
    ("number", "code", "line"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_that_comes_out_as_another_error(
    number: int, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Storage:
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> int:
            signal.raise_signal(number)
            raise IndexError

    def callback() -> None:
        try:
            torch.asarray(Storage(), dtype=torch.uint8)
        except ValueError as error:
            raise UserError("weights must be whole", str(error), "copy the file again") from error

    monkeypatch.setattr(module, "cli", click.Command("any", callback=callback))
    before = signal.signal(number, signal.SIG_DFL)  # a worker of pytest-xdist was started with SIGINT ignored
    try:
        assert main([]) == code
    finally:
        signal.signal(number, before)
    assert capsys.readouterr().err.strip() == line


def test_a_signal_that_was_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """As nohup and a script's "&" start a program. Seen to fail with a handler for every signal: exit code 130."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        monkeypatch.setattr(module, "cli", click.Command("any", callback=lambda: signal.raise_signal(signal.SIGINT)))
        assert main([]) == 0
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        assert main(arguments) == 0
        shown = capsys.readouterr().out
        for name, (_, line) in COMMANDS.items():
            assert name in shown
            assert line in shown
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ggm-image ")


# Seen to fail with `import torch` at the top of cli/data.py.
@pytest.mark.parametrize("arguments", [["--help"], ["encode", "--help"], ["decode", "--help"]])
def test_help_does_not_import_torch_and_is_quick(arguments: list[str]) -> None:
    code = (
        "import sys; from ggm_image.cli.main import main; code = main(sys.argv[1:]);"
        "sys.exit(code or any(name in sys.modules for name in ('torch', 'numpy', 'pydantic')))"
    )
    before = os.times()
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    after = os.times()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: ")
    # The processor's time: the clock on the wall also counts whatever else the machine is doing.
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < 1.0, f"{time.perf_counter() - started:.2f} s on the clock"


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = "import sys; from ggm_image.cli.main import main; sys.stdin.read(); sys.exit(main(['encode', '--help']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    process.stdin.close()
    errors = process.stderr.read()
    process.stderr.close()
    process.wait()
    assert errors == b""
