"""Distributed training: start the processes, let them agree on decisions, and end all of them when one fails.

Lightning Fabric starts the processes (its own launcher, torchrun, SLURM) and wraps the model (DDP, FSDP). Decisions
that all processes must share use a separate gloo group on the CPU, so they never wait for a GPU.
"""

import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning_fabric.plugins.precision import MixedPrecision
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from ggm_image.errors import PeerFailure, UserError
from ggm_image.runtime.precision import choose_precision

PAUSE = 2.0
"""Seconds for which a process that has nothing to say outlives the one that has: launchers end all when one ends."""


class ExactInputs(MixedPrecision):
    """Products in bf16, inputs as they are: Fabric would round levels, and so noise, loss and network would differ."""

    def convert_input(self, data: Any) -> Any:
        return data


def make_fabric(device: str, precision: str, *, devices: int = 1, nodes: int = 1, strategy: str = "auto") -> Fabric:
    """Fabric, launched, on one device, or on ``devices`` of each of ``nodes`` machines.

    Args:
        device: auto, cpu, cuda, cuda:1, mps; without a number if there are several processes.
        precision: one of `precision.PRECISIONS`.
        strategy: ddp, fsdp, or auto, which is ddp; of no effect with one process.
    """
    name, _, index = device.partition(":")
    several = devices * nodes > 1
    if several and index:
        raise UserError("several processes take a device each", device, f"use --device {name}")
    chosen = _strategy(strategy, devices * nodes) if several else "auto"
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it greets every process
    try:
        if index and not index.isdigit():
            raise ValueError(f"device index {index!r}")
        picked = [int(index)] if index else devices
        there = _device_of(name, index)
        mixed = choose_precision(precision, there)[0] == "bf16-mixed"
        plugins = [ExactInputs("bf16-mixed", there.type)] if mixed else []
        fabric = Fabric(accelerator=name, devices=picked, num_nodes=nodes, strategy=chosen, plugins=plugins)
        _meet_again(fabric)
        fabric.launch()  # starts the other processes, where that is ours to do, and meets them
        return fabric
    except (ValueError, RuntimeError, ImportError) as error:
        raise UserError("device is not usable", f"{device}: {error}", "try --device cpu") from error
    except Exception as error:
        if type(error).__name__ == "MisconfigurationException":
            raise UserError("device is not there", f"{device}: {error}", "try --device cpu") from error
        raise


def _device_of(name: str, index: str) -> torch.device:
    """The device that Fabric will choose; the CPU for a name that it will refuse."""
    if name == "auto":
        mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    return torch.device(f"{name}:{index}" if index else name) if name in ("cuda", "mps") else torch.device("cpu")


def _meet_again(fabric: Fabric) -> None:
    """Started again by torchrun: meet at a place of this attempt's own.

    All attempts share torchrun's store, and gloo finds the addresses there that processes of the last one have left.
    """
    attempt, world = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), fabric.world_size
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if attempt == "0" or world == 1 or not shared or not TorchElasticEnvironment.detect():
        return
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), world, is_master=False)
    dist.init_process_group(
        "nccl" if fabric.device.type == "cuda" else "gloo",
        store=dist.PrefixStore(f"attempt {attempt}", store),
        rank=int(os.environ["RANK"]),
        world_size=world,
    )


def _strategy(name: str, processes: int) -> Strategy:
    if name == "fsdp":
        return ModelParallelStrategy(shard_blocks, data_parallel_size=processes, tensor_parallel_size=1)
    return DDPStrategy(gradient_as_bucket_view=True)  # or the gradients would be there twice


def shard_blocks(module: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Spread a module's parameters over the processes: each transformer block by itself, the rest together."""
    from torch.distributed.fsdp import fully_shard

    rows = mesh["data_parallel"]
    for layers in [part for part in module.modules() if isinstance(part, nn.ModuleList)]:
        for block in layers:
            fully_shard(block, mesh=rows)
    fully_shard(module, mesh=rows)
    return module


def processes_asked(devices: int | None, nodes: int | None) -> tuple[int, int]:
    """Processes a machine, and machines: those that torchrun or srun has started, else those asked for, else one."""
    launcher, found = "", (1, 1)
    if TorchElasticEnvironment.detect():
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        launcher, found = "torchrun", (local, int(os.environ["WORLD_SIZE"]) // local)
    elif int(os.environ.get("SLURM_NTASKS", "1")) > 1 and SLURMEnvironment.detect():
        tasks, machines = int(os.environ["SLURM_NTASKS"]), int(os.environ.get("SLURM_NNODES", "1"))
        launcher, found = "srun", (tasks // machines, machines)
    if not launcher:
        return devices or 1, nodes or 1
    for option, asked, got in (("--devices", devices, found[0]), ("--nodes", nodes, found[1])):
        if asked not in (None, got):
            raise UserError(f"{option} must be that of {launcher}", f"{asked} against {got}", f"leave {option} out")
    return found


def launched_rank() -> int:
    """Number of this process among those that a launcher has started, before they have met."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdigit()), 0)


def is_main_process() -> bool:
    """Whether this process is the only one, or the first of several that have met."""
    return not dist.is_initialized() or dist.get_rank() == 0


@contextmanager
def report_once() -> Iterator[None]:
    """Where processes cannot agree on who has failed: an error that all of them find is printed once, by the first."""
    try:
        yield
    except UserError:
        if launched_rank():
            time.sleep(PAUSE)  # the launcher ends this process as soon as the first has ended
        raise


class DistributedContext:
    """The processes of one run.

    Args:
        fabric: launched; None for a single process that does without.

    Attributes:
        sharded: whether parameters are spread over the processes.
    """

    def __init__(self, fabric: Fabric | None = None) -> None:
        self._fabric = fabric
        self.rank: int = 0 if fabric is None else fabric.global_rank
        self.world_size: int = 1 if fabric is None else fabric.world_size
        self.is_main_process = self.rank == 0
        self.sharded = fabric is not None and isinstance(fabric.strategy, ModelParallelStrategy)
        self._group: Any = dist.new_group(backend="gloo") if self.world_size > 1 else None

    @property
    def fabric(self) -> Fabric:
        """That of several processes, or of one that was given it."""
        assert self._fabric is not None
        return self._fabric

    @property
    def mesh(self) -> DeviceMesh:
        """Of the processes that parameters are spread over."""
        assert isinstance(self.fabric.strategy, ModelParallelStrategy)
        return self.fabric.strategy.device_mesh["data_parallel"]

    def sum(self, values: Sequence[float], operation: Any = dist.ReduceOp.SUM) -> list[float]:
        """Sum of each number over the processes; as they are where there is one process."""
        if self.world_size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, operation, group=self._group)
        return [float(value) for value in total]

    def agree(self, stop: bool, seconds: float) -> tuple[bool, float]:
        """Whether any process wants to stop, and the first one's clock."""
        wanted, clock = self.sum([float(stop), seconds if self.is_main_process else 0.0])
        return wanted > 0, clock

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work without any communication, after which all processes continue, or none does.

        Raises:
            PeerFailure: in all processes but the first that failed; that one raises its error.
        """
        failure: BaseException | None = None
        try:
            yield
        except BaseException as error:
            failure = error
        (who,) = self.sum([self.rank if failure else self.world_size], dist.ReduceOp.MIN)
        if failure is not None and who == self.rank:
            raise failure
        if who < self.world_size:
            time.sleep(PAUSE)
            raise PeerFailure(2) from failure

    @contextmanager
    def lost(self) -> Iterator[None]:
        """Say in one line that another process has died, where a collective operation finds its connection closed."""
        try:
            yield
        except RuntimeError as error:
            if self.world_size == 1 or "gloo" not in str(error):
                raise
            found = re.search(r"connection [a-z ]+", str(error), re.IGNORECASE)
            why = found[0].strip() if found else "connection lost"
            fix = "see its message; resume from the last checkpoint with --resume"
            raise UserError("another process of the run has ended", why, fix) from error
