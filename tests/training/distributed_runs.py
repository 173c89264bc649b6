"""Runs of several processes: forks of one that has imported everything, told what torchrun would tell them.

    python -m tests.training.distributed_runs JOBS.json RESULTS.json
    torchrun ... -m tests.training.distributed_runs once ACCIDENT train ...

A job is a name, a number of processes, arguments of ``ggm-image train``, and what goes wrong in it. Under torchrun it
goes wrong once: not after a restart.
"""

import errno
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.fsdp
from torch.utils.tensorboard import SummaryWriter  # noqa: F401  imported before the fork

from ggm_image.cli.main import main
from ggm_image.training import loop
from ggm_image.training import trainer as generator
from ggm_image.training.sharded_state import own
from ggm_image.training.trainer import GeneratorTrainer

LIMIT = 240.0
"""Seconds after which a run counts as hanging."""


def at_step(number: int, rank: int, what: Callable[[GeneratorTrainer], None]) -> None:
    """Let ``what`` happen to the process of that rank before step ``number``."""
    step = GeneratorTrainer.train_step

    def stumble(self: GeneratorTrainer) -> dict[str, Any]:
        if self.step == number and self.context.rank == rank:
            what(self)
        return step(self)

    GeneratorTrainer.train_step = stumble  # type: ignore[method-assign]


def spoil(trainer: GeneratorTrainer) -> None:
    with torch.no_grad():
        own(trainer.network.norm.weight)[0] = torch.nan


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "checkpoint.pt")


def fill_the_disk() -> None:
    generator.save_checkpoint = full  # type: ignore[assignment]


ACCIDENTS: dict[str, Callable[[], None]] = {
    "": lambda: None,
    "term": lambda: at_step(5, 1, lambda _: os.kill(os.getpid(), signal.SIGTERM)),
    "cut": lambda: at_step(5, 0, lambda _: os.kill(os.getpid(), signal.SIGINT)),
    "kill": lambda: at_step(5, 1, lambda _: os.kill(os.getpid(), signal.SIGKILL)),
    "nan": lambda: at_step(7, 1, spoil),
    "disk": fill_the_disk,
}


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def torchrun(rank: int, world: int) -> dict[str, Any]:
    """What torchrun tells a process, on one machine."""
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    return {**told, "TORCHELASTIC_RUN_ID": "none"}


def srun(rank: int, world: int) -> dict[str, Any]:
    """What srun tells a process, one on each machine."""
    told = {"NTASKS": world, "NNODES": world, "NTASKS_PER_NODE": 1, "PROCID": rank, "NODEID": rank, "LOCALID": 0}
    return {f"SLURM_{name}": value for name, value in {**told, "JOB_ID": 1, "JOB_NAME": "train"}.items()}


def fork(rank: int, world: int, port: int, job: dict[str, Any], log: Path) -> int:
    """Start one process of a job; its number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        if world > 1:
            told = (srun if job["launcher"] == "srun" else torchrun)(rank, world)
            os.environ |= {name: str(value) for name, value in told.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        torch.set_num_threads(1)
        loop.plot_at_the_end = lambda folder: None  # which takes longer than the training
        ACCIDENTS[job.get("accident", "")]()
        code = main(job["arguments"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return 0


def run_job(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run all processes of a job to their end: exit codes and output of each, and seconds."""
    world, port, began = job["world"], free_port(), time.monotonic()
    logs = [folder / f"{job['name']}-{rank}.txt" for rank in range(world)]
    children = [fork(rank, world, port, job, log) for rank, log in enumerate(logs)]
    codes: dict[int, int] = {}
    while len(codes) < world:
        for rank, child in enumerate(children):
            if rank not in codes and (ended := os.waitpid(child, os.WNOHANG))[0]:
                codes[rank] = os.waitstatus_to_exitcode(ended[1])
        if time.monotonic() - began > LIMIT:
            for rank, child in enumerate(children):
                if rank not in codes:
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    texts = [log.read_text(errors="replace") for log in logs]
    return {"codes": [codes[rank] for rank in range(world)], "texts": texts, "seconds": time.monotonic() - began}


if __name__ == "__main__":
    if sys.argv[1] == "once":
        if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            ACCIDENTS[sys.argv[2]]()
        raise SystemExit(main(sys.argv[3:]))
    jobs, results = Path(sys.argv[1]), Path(sys.argv[2])
    found = {job["name"]: run_job(job, results.parent) for job in json.loads(jobs.read_text())}
    results.write_text(json.dumps(found))
