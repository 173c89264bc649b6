"""CUDA graphs: computations that repeat with the same shapes are recorded once and then replayed.

A network call is hundreds of kernel launches. With few rows the GPU finishes a kernel before the host has launched the
next one, and idles. A CUDA graph launches all of them at once. The kernels are the same, so results are bit-identical.

What is recorded must not wait for the device, copy from the host, or branch on the value of a tensor. A graph reads its
inputs from buffers of its own and writes its output to a place of its own, which the next replay overwrites. All graphs
of a `CudaGraphs` share one pool of memory for what lies between: they never run at the same time, and an output is used
before the next replay.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.runtime.streams import say

PLAIN_CALLS = 2
"""Calls of a shape before it is recorded: recording costs about as much as four calls."""
CAPACITY = 64
"""Graphs kept at most. A run has one shape for each number of queried sites, up to some tens."""
PATIENCE = 512
"""Calls for which a graph stays although it is not used. Evicting at once would record in every call of a run that has
more shapes than there is room for."""
REMEMBERED = 4096
"""Shapes whose calls are counted at most."""
WARM_UP = 2
"""Calls on the side stream before the recording: libraries load kernels and allocate workspaces in the first ones."""
FREE_MEMORY = 0.25
"""Share of the device's memory that must be free for a recording, so that what follows it still fits."""

_recording = threading.Lock()  # torch allows one capture at a time in a process


class Recorder(Protocol):
    """Records computations on a device. `CudaRecorder` is the real one; tests have their own."""

    def takes(self, device: torch.device) -> bool:
        """Whether a computation on the device may be recorded or replayed now."""
        ...

    def has_room(self, device: torch.device) -> bool:
        """Whether the device has memory for one more graph."""
        ...

    def follow(self, device: torch.device) -> None:
        """Order what the current stream does from here on after the last replay, whichever stream that ran on."""
        ...

    def record(self, compute: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, Callable[[], object]]:
        """The place of the output, and the function that computes it again."""
        ...

    def release(self) -> None:
        """All graphs are gone: give up the memory that they shared."""
        ...


class CudaRecorder:
    """Records with `torch.cuda.graph`, on one side stream and into one pool of memory."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._stream: Any = None
        self._last: Any = None

    def takes(self, device: torch.device) -> bool:
        """True on CUDA, unless the current stream is being captured already."""
        return device.type == "cuda" and not torch.cuda.is_current_stream_capturing()

    def has_room(self, device: torch.device) -> bool:
        """Whether `FREE_MEMORY` of the device is free; what torch keeps for later is freed to find out."""
        for attempt in range(2):
            free, total = torch.cuda.mem_get_info(device)
            if free >= FREE_MEMORY * total:
                return True
            if attempt == 0:
                torch.cuda.empty_cache()
        return False

    def follow(self, device: torch.device) -> None:
        """Threads may use streams of their own, and all graphs share their memory."""
        stream = torch.cuda.current_stream(device)
        if self._last is not None and self._last != stream:
            stream.wait_stream(self._last)
        self._last = stream

    def record(self, compute: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, Callable[[], object]]:
        """Warm up on the side stream, then capture there."""
        with _recording, torch.cuda.device(device):
            if self._stream is None or self._stream.device != device:
                self._stream, self._pool = torch.cuda.Stream(device), None
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            current = torch.cuda.current_stream(device)
            try:
                self._stream.wait_stream(current)
                # the same stream as in the capture, whose cuBLAS workspace then exists outside the graphs' pool
                with torch.cuda.stream(self._stream):
                    for _ in range(WARM_UP):
                        compute()
                current.wait_stream(self._stream)
                graph, inference = torch.cuda.CUDAGraph(), torch.is_inference_mode_enabled()
                # what a capture adds to torch's generator must not be inference tensors: others' captures write to it.
                # thread_local: other threads may allocate and wait meanwhile
                with (
                    torch.inference_mode(False),
                    torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
                    torch.inference_mode(inference),
                    torch.no_grad(),
                ):
                    output = compute()
            except BaseException:
                self._abandon(device)
                raise
            finally:
                torch.cuda.set_stream(current)  # a capture that fails leaves the side stream in place
        return output, graph.replay

    def _abandon(self, device: torch.device) -> None:
        """End what a failed capture began: until torch 2.12 the allocator still waits for it, and frees no memory."""
        with contextlib.suppress(Exception):  # mostly there is nothing left to end
            torch._C._cuda_endAllocateToPool(device.index, self._pool)
            torch._C._cuda_releasePool(device.index, self._pool)
        self._pool = None

    def release(self) -> None:
        """The next graph gets a new pool: torch does not take one again whose graphs are all gone."""
        self._pool = None
        with contextlib.suppress(RuntimeError):
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()


@dataclass
class _Graph:
    """A recorded call: its buffers, and the number of the call that used it last."""

    inputs: tuple[Tensor | None, ...]
    output: Tensor
    replay: Callable[[], object]
    last_used: int


class CudaGraphs:
    """Calls a function, by a CUDA graph where that pays; the result is the same.

    A shape is recorded when it is called for the third time. At most ``capacity`` graphs are kept; the one that was
    used least recently makes room, once it has not been used for `PATIENCE` calls. Until then other shapes are called
    plainly. If anything fails, one line says so on stderr, and all calls are plain from then on.

    Threads may share it. With gradients, while torch.compile traces, within another capture and on other devices all
    calls are plain.

    Args:
        at_once: record a shape when it is called for the first time.
        capacity: graphs to keep at most.
        recorder: records; of CUDA by default.

    Attributes:
        failed: whether all calls are plain from now on.
    """

    def __init__(self, *, at_once: bool = False, capacity: int = CAPACITY, recorder: Recorder | None = None) -> None:
        self.at_once, self.capacity = at_once, capacity
        self.recordings, self.replays, self.failed = 0, 0, False
        self._recorder: Recorder = CudaRecorder() if recorder is None else recorder
        self._lock = threading.RLock()
        self._graphs: OrderedDict[Hashable, _Graph] = OrderedDict()  # the least recently used first
        self._seen: OrderedDict[Hashable, int] = OrderedDict()
        self._sources: Hashable = None
        self._calls = 0

    def __reduce__(self) -> Any:  # a copy of a model records graphs of its own
        return partial(CudaGraphs, at_once=self.at_once, capacity=self.capacity), ()

    def __len__(self) -> int:
        return len(self._graphs)

    def applies_to(self, device: torch.device) -> bool:
        """Whether a call on the device may be recorded or replayed now."""
        if self.failed or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return False
        return self._recorder.takes(device)

    def __call__(
        self,
        function: Callable[..., Tensor],
        inputs: tuple[Tensor | None, ...],
        *,
        read: Callable[[Tensor], Tensor],
        setting: Hashable = None,
        sources: Hashable = None,
    ) -> Tensor:
        """``read(function(*inputs))``.

        Args:
            function: what is recorded. It must depend on ``inputs``, ``setting`` and ``sources`` alone. Autocast must
                find nothing in it to convert and cache: the cache does not outlive the recording.
            inputs: tensors on one device, the first not None; their shapes and types tell graphs apart.
            read: called with the output, which the next replay overwrites; it must return another tensor.
            setting: what else tells graphs apart.
            sources: of what ``function`` reads besides its inputs, e.g. the addresses of weights. All graphs are
                dropped when it changes.
        """
        first = inputs[0]
        if first is not None and self.applies_to(first.device):
            with self._lock:
                result = self._replayed(function, inputs, first.device, read, setting, sources)
            if result is not None:
                return result
        return read(function(*inputs))

    def clear(self) -> None:
        """Drop all graphs and free their memory."""
        with self._lock:
            had_graphs = bool(self._graphs)
            self._graphs.clear()
            self._seen.clear()
            if had_graphs:
                self._recorder.release()

    def _replayed(
        self,
        function: Callable[..., Tensor],
        inputs: tuple[Tensor | None, ...],
        device: torch.device,
        read: Callable[[Tensor], Tensor],
        setting: Hashable,
        sources: Hashable,
    ) -> Tensor | None:
        """The result by a graph; None where the call must be plain."""
        if self.failed:  # in another thread, while this one waited for the lock
            return None
        self._calls += 1
        autocast = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else None
        modes = torch.is_inference_mode_enabled(), autocast  # its tensors must not be written to outside
        key = (device, modes, setting, *(None if x is None else (x.shape, x.dtype) for x in inputs))
        try:
            if sources != self._sources:
                self.clear()
                self._sources = sources
            graph = self._graphs.get(key)
            if graph is None:
                if not self._is_due(key, device):
                    return None
                self._graphs[key] = graph = self._recorded(function, inputs, device)
            self._recorder.follow(device)
            _fill(graph.inputs, inputs)
            graph.replay()
            graph.last_used = self._calls
            self._graphs.move_to_end(key)
            result = read(graph.output)
        except Exception as error:  # drivers and libraries fail in their own ways; the plain call may still succeed
            self._give_up(error)
            return None
        self.replays += 1
        return result

    def _is_due(self, key: Hashable, device: torch.device) -> bool:
        """Whether to record a shape in this call; makes room for it."""
        count = self._seen.pop(key, 0) + 1
        self._seen[key] = count
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        if count <= (0 if self.at_once else PLAIN_CALLS):
            return False
        if len(self._graphs) >= self.capacity:
            oldest = next(iter(self._graphs))
            if self._calls - self._graphs[oldest].last_used <= PATIENCE:
                return False
            del self._graphs[oldest]
            self._seen.pop(oldest, None)
            if not self._graphs:
                self._recorder.release()
        if not self._recorder.has_room(device):
            self._seen[key] = -PATIENCE  # asking costs time, and memory is not freed in every call
            return False
        return True

    def _recorded(
        self, function: Callable[..., Tensor], inputs: tuple[Tensor | None, ...], device: torch.device
    ) -> _Graph:
        buffers = tuple(None if x is None else torch.empty(x.shape, dtype=x.dtype, device=device) for x in inputs)
        self._recorder.follow(device)
        _fill(buffers, inputs)  # before the warm-up: tokens and sites are indices
        output, replay = self._recorder.record(lambda: function(*buffers), device)
        self.recordings += 1
        return _Graph(buffers, output, replay, self._calls)

    def _give_up(self, error: Exception) -> None:
        self.failed = True
        with contextlib.suppress(Exception):
            self.clear()
        with contextlib.suppress(Exception):
            self._recorder.release()
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        say(f"note: no CUDA graphs from here on ({reason}); results are the same, small batches are slower")


def _fill(buffers: tuple[Tensor | None, ...], values: tuple[Tensor | None, ...]) -> None:
    for buffer, value in zip(buffers, values, strict=True):
        if buffer is not None and value is not None:
            buffer.copy_(value)


def check_cuda_graphs(asked: bool | None, device: torch.device) -> None:
    """Raise UserError where CUDA graphs are asked for on another device; None and False suit any."""
    if asked and device.type != "cuda":
        raise UserError("CUDA graphs need a CUDA device", f"the device is {device.type}", "leave cuda_graphs out")
