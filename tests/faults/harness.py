"""Commands that are killed at random moments and started again, until they end; then their output is compared.

Every run is a fork of a process that has imported everything: it starts at once, so that kills land in the work rather
than in the imports.
"""

import csv
import hashlib
import itertools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL import Image
from safetensors import safe_open

from ggm_image.cli.main import main

TIMING = ("images_per_second", "minutes")
"""Columns of log.csv that say how fast a machine was."""
GRACE = 30
"""Seconds between SIGTERM and SIGKILL, as SLURM gives them."""
LOG_EVERY = 5
"""Steps between rows that every run writes; there is one more at each checkpoint, the moment of which is chance."""


@dataclass
class Story:
    """What happened to one command.

    Attributes:
        runs: how often it was started.
        kills: how many of these runs were killed before they ended.
        seconds: of the shortest run that was left alone.
        grace: seconds from a signal to the end, at most.
    """

    runs: int = 0
    kills: int = 0
    seconds: float = 0.0
    grace: float = 0.0
    codes: list[int] = field(default_factory=list)


def start(arguments: list[str], log: Path, *, hours_back: int = 0) -> int:
    """Fork a process that runs ``ggm-image ARGUMENTS``; its number. With ``hours_back`` its date falls all the time."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        torch.set_num_threads(1)
        if hours_back:
            _set_date_back(hours_back)
        code = main(arguments)
    finally:
        os._exit(code)
    return 0


def _set_date_back(hours: int) -> None:
    """The date of this process starts some hours ago, and each look at it is a second before the last."""
    looks, now = itertools.count(), time.time()

    def date() -> float:
        return now - 3600 * hours - next(looks)

    time.time, time.time_ns = date, lambda: int(1e9 * date())


def run(arguments: list[str], log: Path) -> tuple[int, float]:
    """Run to the end: exit code and seconds."""
    began = time.monotonic()
    _, status = os.waitpid(start(arguments, log), 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - began


def run_killed(
    arguments: Callable[[bool], list[str]],
    log: Path,
    *,
    kills: int,
    seconds: float,
    rng: random.Random,
    check: Callable[[], None],
    number: int = signal.SIGKILL,
) -> Story:
    """Start the command, kill it at a random moment and look at what is there, ``kills`` times; then let it end.

    Every run's date is before that of the run before it, so that all files are from the future.

    Args:
        arguments: those of the first run (False) and of all later ones (True).
        log: where the command's output goes.
        kills: how many.
        seconds: a run's usual length: the moment is uniform in it.
        rng: of the moments.
        check: called after every kill.
        number: the signal.
    """
    story = Story()
    while True:
        last = story.kills >= kills
        child = start(arguments(story.runs > 0), log, hours_back=story.runs)
        story.runs += 1
        earliest = 0.05 if number != signal.SIGKILL else 0  # before a command has begun, nobody listens to signals
        deadline = time.monotonic() + (600 if last else rng.uniform(earliest, max(earliest, seconds)))
        while time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                code = os.waitstatus_to_exitcode(status)
                story.codes.append(code)
                if code == 0:
                    return story
                raise AssertionError(f"exit code {code} of {arguments(story.runs > 1)}: see {log.read_text()[-2000:]}")
            time.sleep(0.002)
        os.kill(child, number)
        sent = time.monotonic()
        _, status = os.waitpid(child, 0)
        story.grace = max(story.grace, time.monotonic() - sent)
        code = os.waitstatus_to_exitcode(status)
        assert number == signal.SIGKILL or code in (0, 130, 143), f"exit code {code}: {log.read_text()[-2000:]}"
        assert story.grace < GRACE, f"{story.grace:.1f} s from the signal to the end"
        story.kills += 1
        check()


def assert_whole(folder: Path) -> None:
    """Every file of a name that a later run would read is whole; hidden ones are temporary."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        match path.suffix:
            case ".json":
                json.loads(path.read_text())
            case ".png":
                with Image.open(path) as image:
                    image.load()
            case ".safetensors":
                with safe_open(path, "pt") as opened:
                    for name in opened.keys():  # noqa: SIM118
                        opened.get_tensor(name)
            case ".pt":
                torch.load(path, weights_only=True)


def digests(folder: Path, *, skip: tuple[str, ...] = ()) -> dict[str, str]:
    """SHA-256 of every file by its path; logs without what depends on time."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or name.startswith(skip):
            continue
        content = _without_times(path) if path.name == "log.csv" else path.read_bytes()
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def _without_times(path: Path) -> bytes:
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["step"]) % LOG_EVERY == 0]
    return json.dumps([{k: v for k, v in row.items() if k not in TIMING} for row in rows]).encode()
