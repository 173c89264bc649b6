"""Write checkpoints atomically, keep the previous one, and detect damaged ones."""

import math
import os
import pickle
import shutil
import uuid
import zipfile
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from ggm_image.errors import UserError, explained
from ggm_image.io.files import atomic_path, disk_errors
from ggm_image.training.distributed import DistributedContext
from ggm_image.training.logging import to_stderr
from ggm_image.training.sharded_state import join, part_name, save_part

CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint-previous.pt"
"""Files; sharded ones are folders of the same names without the suffix."""


def time_left(*, step: int, steps: int, seconds: float, minutes: float | None, steps_per_second: float) -> str:
    """Minutes until the run ends, and which of its two limits ends it.

    Args:
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


def random_state() -> dict[str, Any]:
    """States of torch's own generators (each run has generators of its own as well)."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def set_random_state(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def generator_state(generator: torch.Generator) -> dict[str, Any]:
    """State of a run's own generator; numbers of a CPU and of a GPU come from generators of different kinds."""
    return {"device": generator.device.type, "state": generator.get_state()}


def set_generator_state(generator: torch.Generator, state: Mapping[str, Any] | torch.Tensor, seed: int) -> bool:
    """Restore a `generator_state`, or seed the generator where the state is of another kind of device.

    Args:
        state: of `generator_state`; earlier versions saved that of a CPU generator as a tensor.
        seed: for a generator of another kind of device; to be different at every step of the run.

    Returns:
        Whether the state was restored.
    """
    if isinstance(state, torch.Tensor):
        state = {"device": "cpu", "state": state}
    same = state["device"] == generator.device.type
    if same:
        generator.set_state(state["state"])
    else:
        generator.manual_seed(seed)
    return same


def kind_of_run(command: str) -> AbstractContextManager[None]:
    """Raise UserError where a checkpoint lacks what one of ``command`` holds, or holds tensors of other shapes."""
    return explained("checkpoint is not one of this kind of run", f"name the folder of a `{command}` run")


OTHER_DEVICE = "resume: on another kind of device, so the noise differs from that of an uninterrupted run"
"""The message where `set_generator_state` returns false."""


def save_checkpoint(folder: Path, state: Mapping[str, Any]) -> Path:
    """Write the latest checkpoint whole; the one before it is kept as the previous one."""
    latest = folder / CHECKPOINT
    with atomic_path(latest) as temporary:
        with open(temporary, "wb") as file, disk_errors(latest):
            torch.save(dict(state), file)
        _keep_previous(folder)
    return latest


def save_sharded_checkpoint(folder: Path, state: Mapping[str, Any], context: DistributedContext) -> Path:
    """As `save_checkpoint`, each process writing its own part; to be called by all of them."""
    latest = (folder / CHECKPOINT).with_suffix("")
    (number,) = context.sum([uuid.uuid4().int % (1 << 32) if context.is_main_process else 0])
    temporary = latest.with_name(f".{latest.name}.{int(number):08x}.tmp")
    try:
        with context.together():
            temporary.mkdir(exist_ok=True)
            save_part(temporary, state, context.rank, context.world_size)
            with open(temporary / part_name(context.rank, context.world_size), "rb+") as file:
                os.fsync(file.fileno())
        with context.together():
            if context.is_main_process:
                _keep_previous(folder)
                os.replace(temporary, latest)
    finally:
        if context.is_main_process:
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


def load_checkpoint(folder: Path, context: DistributedContext | None = None) -> dict[str, Any]:
    """The latest checkpoint, or the previous one if the latest is damaged, which is reported; tensors and numbers only.

    Args:
        context: processes that all load it; they share the checks, and agree on which one it is.

    Returns:
        The state; with `sharded_state.Pieces` in place of tensors if it was written by several processes.
    """
    failures: list[str] = []
    for name in (CHECKPOINT, PREVIOUS):
        path, state = _find(folder, name), None
        if path is not None:
            try:
                state = _read(path, *((context.rank, context.world_size) if context else (0, 1)))
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
        # All processes must read the same checkpoint: if one cannot, all go to the one before.
        read = state is not None
        if context is not None:
            read = context.sum([float(read)])[0] == context.world_size
        if state is None or not read:
            continue
        if failures:
            to_stderr(f"{failures[0]}: resuming from {path}, the one before")
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
        # torch reads a flipped bit silently, although the checksums are in the file
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
