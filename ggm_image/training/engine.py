"""What every training run needs: averaged weights, learning rate, checkpoints, logs, and a clock."""

import csv
import ctypes
import functools
import io
import math
import mmap
import os
import pickle
import shutil
import sys
import time
import uuid
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ggm_image.errors import UserError
from ggm_image.files import atomic_path, disk_errors, write_text
from ggm_image.training.crew import Crew
from ggm_image.training.shards import join, own, part_name, save_part

CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint-previous.pt"
"""Files; sharded ones are folders of the same names without the suffix."""
WARMUP_SHARE = 0.1
"""The largest share of a run that its warm-up takes."""


class Ema:
    """Moving average of a module's state, in float32; integer entries are copied.

    decay_n = min(decay, (1 + n) / (10 + n)) after n steps, so that the first weights are soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the module's state after its ``step``-th step."""
        live = module.state_dict()
        names = [name for name, value in self.state.items() if value.is_floating_point()]
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([own(self.state[n]) for n in names], [own(live[n]) for n in names], weight)
        for name in self.state.keys() - names:
            self.state[name].copy_(live[name])

    def load(self, state: Mapping[str, Tensor]) -> None:
        for name, value in self.state.items():
            value.copy_(state[name])


NOT_DECAYED = ("table", "bias")
"""Last parts of the names of parameters that have no weight decay, whatever their shape."""


def decays(module: nn.Module, name: str) -> bool:
    """Whether a parameter has weight decay: every matrix that multiplies activations, and every kernel.

    That is all with two dimensions or more, but for embeddings, whose rows are looked up (a head that is tied to one
    included), and tables of shifts, scales and gates, which are vectors side by side.
    """
    parent, _, last = name.rpartition(".")
    embedding = isinstance(module.get_submodule(parent), nn.Embedding)
    return module.get_parameter(name).dim() >= 2 and not embedding and last not in NOT_DECAYED


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimizer: those that decay, see `decays`, and those that do not."""
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    return [
        {"params": [p for name, p in trained if decays(module, name)], "weight_decay": weight_decay},
        {"params": [p for name, p in trained if not decays(module, name)], "weight_decay": 0.0},
    ]


def regrouped(state: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    """An optimizer's state in the groups of `parameter_groups`, if an earlier version wrote it in its own.

    Until version 0.1.0 only the weights of layers decayed, so a head of its own, a bare parameter, did not.
    """
    trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    ours = [[name for name in trained if decays(module, name)], [name for name in trained if not decays(module, name)]]
    layers = {f"{name}.weight" for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    before = [[name for name in trained if name in layers], [name for name in trained if name not in layers]]
    sizes = [len(group["params"]) for group in state["param_groups"]]
    if sizes == list(map(len, ours)) or sizes != list(map(len, before)):
        return dict(state)  # as it should be; or of neither, which the optimizer refuses
    number = {name: k for k, name in enumerate(before[0] + before[1])}
    order = [number[name] for name in ours[0] + ours[1]]
    moved = {k: state["state"][old] for k, old in enumerate(order) if old in state["state"]}
    groups, start = [], 0
    for group, names in zip(state["param_groups"], ours, strict=True):
        groups.append({**group, "params": list(range(start, start + len(names)))})
        start += len(names)
    return {"state": moved, "param_groups": groups}


def learning_rate(peak: float, *, step: int, warmup_steps: int, progress: float, final_share: float) -> float:
    """Linear warm-up times a cosine of the share ``progress`` in [0, 1] of the run that is done.

    The warm-up takes ``warmup_steps`` steps, but at most the share `WARMUP_SHARE` of the run.
    """
    # a run that ends within its warm-up would never reach the rate that it was given
    warm = min(1.0, max((step + 1) / max(1, warmup_steps), progress / WARMUP_SHARE))
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * warm * (final_share + (1 - final_share) * cosine)


def time_left(*, step: int, steps: int, seconds: float, minutes: float | None, steps_per_second: float) -> str:
    """Minutes until the run ends, and which of its two limits ends it.

    Args:
        step: steps that are done.
        steps: at most.
        seconds: of training so far.
        minutes: at most; None without such a limit.
        steps_per_second: of the last steps.
    """
    by_steps = max(0, steps - step) / max(steps_per_second, 1e-9)
    by_time = math.inf if minutes is None else max(0.0, 60 * minutes - seconds)
    left, limit = (by_time, "max_minutes") if by_time < by_steps else (by_steps, "steps")
    return (
        f"about {left / 60:.1f} min left until {limit}"
        if left < 6000
        else f"about {left / 3600:.0f} h left until {limit}"
    )


class DataOrder:
    """Rows of a data set in a new random order each epoch; its state is three numbers.

    Args:
        rows: number of rows.
        batch_size: rows a batch; a batch may span two epochs, so none is dropped.
        seed: of all epochs' orders.
    """

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.epoch, self.position = 0, 0
        self._order = self._permutation()

    def _permutation(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return torch.randperm(self.rows, generator=generator)

    def next(self) -> Tensor:
        """Row numbers (batch_size,) of the next batch."""
        parts, missing = [], self.batch_size
        while missing:
            part = self._order[self.position : self.position + missing]
            parts.append(part)
            missing -= len(part)
            self.position += len(part)
            if self.position == self.rows:
                self.epoch, self.position = self.epoch + 1, 0
                self._order = self._permutation()
        return torch.cat(parts)

    def state_dict(self) -> dict[str, int]:
        return {"rows": self.rows, "seed": self.seed, "epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        for name in ("rows", "seed"):
            if state[name] != getattr(self, name):
                raise UserError(
                    f"the run was started with other data: {name}",
                    f"{state[name]} in the checkpoint, now {getattr(self, name)}",
                    "give the token cache and the seed that the run was started with",
                )
        self.epoch, self.position = state["epoch"], state["position"]
        self._order = self._permutation()


def to_stderr(line: str) -> None:
    """Print a line for people; nowhere where there is no stderr."""
    if sys.stderr is not None:
        print(line, file=sys.stderr, flush=True)


def random_state() -> dict[str, Any]:
    """States of torch's own generators (each run has generators of its own as well)."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def save_checkpoint(folder: Path, state: Mapping[str, Any]) -> Path:
    """Write the latest checkpoint whole; the one before it is kept as the previous one."""
    latest = folder / CHECKPOINT
    with atomic_path(latest) as temporary:
        with open(temporary, "wb") as file, disk_errors(latest):
            torch.save(dict(state), file)
        _keep_previous(folder)
    return latest


def save_sharded_checkpoint(folder: Path, state: Mapping[str, Any], crew: Crew) -> Path:
    """As `save_checkpoint`, each process writing its own part; to be called by all of them."""
    latest = (folder / CHECKPOINT).with_suffix("")
    (number,) = crew.sum([uuid.uuid4().int % (1 << 32) if crew.first else 0])
    temporary = latest.with_name(f".{latest.name}.{int(number):08x}.tmp")
    try:
        with crew.together():
            temporary.mkdir(exist_ok=True)
            save_part(temporary, state, crew.rank, crew.world)
            with open(temporary / part_name(crew.rank, crew.world), "rb+") as file:
                os.fsync(file.fileno())
        with crew.together():
            if crew.first:
                _keep_previous(folder)
                os.replace(temporary, latest)
    finally:
        if crew.first:
            shutil.rmtree(temporary, ignore_errors=True)
    return latest


def _keep_previous(folder: Path) -> None:
    """Rename the latest checkpoint, file or folder, to the previous one; at every moment there is one of the two."""
    latest, previous = _find(folder, CHECKPOINT), _find(folder, PREVIOUS)
    if latest is None:
        return
    if previous is not None and (previous.is_dir() or latest.is_dir()):
        shutil.rmtree(previous) if previous.is_dir() else previous.unlink()
    os.replace(latest, (folder / PREVIOUS).with_suffix(latest.suffix))


def _find(folder: Path, name: str) -> Path | None:
    """The file of that name, or the folder."""
    path = folder / name
    return path if path.is_file() else path.with_suffix("") if path.with_suffix("").is_dir() else None


def load_checkpoint(folder: Path, crew: Crew | None = None) -> dict[str, Any]:
    """The latest checkpoint, or the previous one if the latest is damaged, which is said; tensors and numbers only.

    Args:
        folder: of the run.
        crew: processes that all load it; they share the checks, and agree on which one it is.

    Returns:
        The state; with `shards.Pieces` in place of tensors if it was written by several processes.

    Raises:
        UserError: there is none, or none that can be read.
    """
    failures: list[str] = []
    for name in (CHECKPOINT, PREVIOUS):
        path, state = _find(folder, name), None
        if path is not None:
            try:
                state = _read(path, *((crew.rank, crew.world) if crew else (0, 1)))
            except (
                RuntimeError,
                OSError,
                EOFError,
                ValueError,
                KeyError,
                AssertionError,
                zipfile.BadZipFile,
                pickle.UnpicklingError,
            ) as error:
                failures.append(f"{path}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
        read = state is not None
        if crew is not None:
            read = crew.sum([float(read)])[0] == crew.world
        if state is None or not read:
            continue
        if failures:
            to_stderr(f"{failures[0]}: going on from {path}, the one before")
        return state
    if failures or has_checkpoint(folder):
        why = "; ".join(failures) or "another process has found damage"
        raise UserError("checkpoint cannot be read", why, "start a new run in another folder")
    raise UserError("nothing to resume: no checkpoint", folder, "leave out --resume, or name the run's folder")


def _read(path: Path, rank: int, world: int) -> dict[str, Any]:
    """A checkpoint; this process checks the sums of every ``world``-th file."""
    files = [path]
    if path.is_dir():
        count = len(list(path.glob("part-*.pt")))
        files = [path / part_name(k, count) for k in range(count)]
        assert files, "no parts"
    for file in files[rank::world]:
        # torch reads a flipped bit without a word, though the sums are in the file
        with zipfile.ZipFile(file) as archive:
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"{damaged} is damaged")
    states = [torch.load(file, map_location="cpu", weights_only=True, mmap=path.is_dir()) for file in files]
    assert all(isinstance(state, dict) for state in states)
    state = join(states) if path.is_dir() else states[0]
    assert isinstance(state, dict)
    return state


def has_checkpoint(folder: Path) -> bool:
    return any(_find(folder, name) is not None for name in (CHECKPOINT, PREVIOUS))


class Log:
    """``log.csv`` (and TensorBoard, where it is installed and can write): one row whenever something was measured.

    Args:
        folder: of the run.
        columns: names of the values, in order; ``step`` comes first.
        step: rows beyond this step, of a run that was cut, are dropped.
    """

    def __init__(self, folder: Path, columns: Iterable[str], step: int) -> None:
        self.columns = ["step", *columns]
        self.path = folder / "log.csv"
        rows = [self.columns]
        if step and self.path.exists():
            with open(self.path, newline="", encoding="utf-8") as file:
                rows += [row for row in list(csv.reader(file))[1:] if row and row[0].isdigit() and int(row[0]) <= step]
        last = [dict(zip(self.columns, row, strict=False)) for row in rows[1:] if row[0] == str(step)]
        self._last = {name for row in last for name, value in row.items() if value}
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        write_text(self.path, text.getvalue())
        self._board = self._open_board(folder, step)

    @staticmethod
    def _open_board(folder: Path, step: int) -> Any:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        try:
            return SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)
        except UnicodeEncodeError:  # TensorBoard takes no folder whose name is not UTF-8
            return None

    def has(self, name: str) -> bool:
        """Whether the step that the run was resumed from has a value of this name."""
        return name in self._last

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append a row; columns without a value stay empty."""
        if unknown := values.keys() - set(self.columns):
            raise ValueError(f"no column for {sorted(unknown)}")
        row = [str(step), *(f"{values[name]:.6g}" if name in values else "" for name in self.columns[1:])]
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerow(row)
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


class Clock:
    """Seconds of work, over all resumptions of a run.

    Args:
        before: seconds of earlier processes.
        timer: what counts seconds; never back, whatever is done to the machine's date.
        running: whether it counts from now on, or from `start` on.
    """

    def __init__(
        self, before: float = 0.0, timer: Callable[[], float] = time.monotonic, *, running: bool = True
    ) -> None:
        self._timer, self._before, self._start = timer, before, timer() if running else None

    def start(self) -> None:
        """Count from now on."""
        if self._start is None:
            self._start = self._timer()

    @property
    def seconds(self) -> float:
        return self._before + (self._timer() - self._start if self._start is not None else 0.0)


HEAP_BYTES = 6 << 30


@functools.cache
def keep_freed_memory() -> None:
    """Give tensors memory in huge pages that is never handed back to the system, instead of fresh pages each time.

    Each fresh page costs a fault and 4 KiB of zeros, and each small one a place in the processor's address cache; in a
    CPU training step this can cost more than the elementwise work itself. It concerns the whole process, so commands
    ask for it, and the library does not. One large block is taken from the heap, marked for huge pages and freed again:
    what is never touched takes no memory. Elsewhere than on glibc nothing is done.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        libc.free.argtypes = [ctypes.c_void_p]
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        m_trim_threshold, m_mmap_max, m_arena_max, madv_hugepage = -1, -4, -8, 14
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)  # as unsigned: never give back
        libc.mallopt(m_arena_max, 1)  # the thread of the backward pass would have a heap of its own
        block = libc.malloc(HEAP_BYTES)
        if block:
            start = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
            end = (block + HEAP_BYTES) // mmap.PAGESIZE * mmap.PAGESIZE
            libc.madvise(start, end - start, madv_hugepage)
            libc.free(block)
    except (OSError, AttributeError):
        return
