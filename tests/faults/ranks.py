"""Shares of one work by several processes, which are killed and started again: ``python -m tests.faults.ranks``.

Two processes with a share each, and a third that was given the second's share by mistake.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np

from ggm_image.cli.main import run as run_command
from ggm_image.metrics import extract_features
from tests.faults.harness import assert_whole, digests, run, start
from tests.faults.stories import prepare

NAMES = ("sample", "fid")
SHARES = ("0/2", "1/2", "1/2")


@click.command(help=__doc__)
@click.option("--kills", default=6, show_default=True, help="Of every command.")
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
def shares(kills: int, seed: int) -> None:
    rng = random.Random(seed)
    extract_features.CHUNK = 32  # many parts of few images
    with TemporaryDirectory() as folder:
        root = Path(folder)
        commands = prepare(root)
        for name in NAMES:
            whole, shared, log = root / f"{name}-whole", root / f"{name}-shared", root / f"{name}.log"
            arguments = commands[name].arguments
            code, seconds = run(arguments(whole), root / "whole.log")
            assert code == 0, (root / "whole.log").read_text()[-2000:]
            runs, killed = _together(arguments(shared), shared, log, kills=kills, seconds=seconds, rng=rng)
            expected, found = digests(whole), digests(shared)
            differ = sorted(file for file in expected.keys() | found.keys() if expected.get(file) != found.get(file))
            assert not differ, f"after {killed} kills these differ: {differ}"
            click.echo(f"{name:<8} {killed} kills, {runs} runs: as one process undisturbed")
            sys.stdout.flush()


def _together(
    arguments: list[str], out: Path, log: Path, *, kills: int, seconds: float, rng: random.Random
) -> tuple[int, int]:
    """Start all shares; kill one at a random moment and start it again, ``kills`` times; then let all end.

    Returns:
        runs, and how many of them were killed while they ran.
    """
    children = {k: start([*arguments, "--shard", share], log) for k, share in enumerate(SHARES)}
    runs, killed = len(SHARES), 0
    for _ in range(kills):
        time.sleep(rng.uniform(0, seconds / len(SHARES)))
        k = rng.choice(list(children))
        done, status = os.waitpid(children[k], os.WNOHANG)
        if done:
            assert status == 0, log.read_text()[-2000:]
        else:
            os.kill(children[k], signal.SIGKILL)
            os.waitpid(children[k], 0)
            killed += 1
            if out.exists():
                assert_whole(out)
                _assert_finished(out)
        children[k] = start([*arguments, "--shard", SHARES[k]], log)
        runs += 1
    for child in children.values():
        status = os.waitpid(child, 0)[1]
        assert status == 0, log.read_text()[-2000:]
    return runs, killed


def _assert_finished(out: Path) -> None:
    """A folder with a manifest, and features with a record, have all that these speak of."""
    for path in out.rglob("manifest.json"):
        missing = json.loads(path.read_text())["count"] - len(list(path.parent.glob("*.png")))
        assert not missing, f"{path} is there and {missing} images are not"
    for path in out.rglob("features.json"):
        rows = json.loads(path.read_text())["rows"]
        assert len(np.load(path.with_name("features.npy"), mmap_mode="r")) == rows


if __name__ == "__main__":
    raise SystemExit(run_command(shares))
