"""Kill every command many times: ``python -m tests.faults.soak --kills 50``."""

import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from ggm_image.cli.main import run
from tests.faults.stories import NAMES, kill_often, prepare


@click.command(help=__doc__)
@click.option("--kills", default=50, show_default=True, help="Of every command.")
@click.option("--batch", default=10, show_default=True, help="Kills of one story, which then ends and is compared.")
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
@click.option("--signal", "name_of_signal", type=click.Choice(["KILL", "TERM"]), default="KILL", show_default=True)
@click.option("--only", type=click.Choice(NAMES), multiple=True, help="These commands.")
def soak(kills: int, batch: int, seed: int, name_of_signal: str, only: tuple[str, ...]) -> None:
    number = signal.Signals[f"SIG{name_of_signal}"]
    with TemporaryDirectory() as folder:
        root = Path(folder)
        commands = prepare(root)
        for name in only or NAMES:
            command = commands[name]
            began, killed, runs, grace = time.monotonic(), 0, 0, 0.0
            while killed < kills:
                some = min(batch, kills - killed)
                story = kill_often(command, root / "story", kills=some, seed=seed + killed, number=number)
                killed, runs, grace = killed + story.kills, runs + story.runs, max(grace, story.grace)
            seconds = time.monotonic() - began
            click.echo(
                f"{name:<16} {killed} kills, {runs} runs, {seconds:.0f} s, ended {grace:.2f} s after the signal "
                "at the latest: as if undisturbed"
            )
            sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(run(soak))
