"""Kill every command many times: ``python -m tests.faults.soak --kills 50``."""

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
@click.option("--only", type=click.Choice(NAMES), multiple=True, help="These commands.")
def soak(kills: int, batch: int, seed: int, only: tuple[str, ...]) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        commands = prepare(root)
        for name in only or NAMES:
            command = commands[name]
            began, killed, runs = time.monotonic(), 0, 0
            while killed < kills:
                story = kill_often(command, root / "story", kills=min(batch, kills - killed), seed=seed + killed)
                killed, runs = killed + story.kills, runs + story.runs
            seconds = time.monotonic() - began
            click.echo(f"{name:<16} {killed} kills, {runs} runs, {seconds:.0f} s: as if undisturbed")
            sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(run(soak))
