"""Pretend CUDA on a machine without it: tensors that say ``cuda:0``, hold CPU data, and log what a device would do.

    with pretend_cuda() as log:
        model = load_model(folder, device="cuda")
        log.clear()
        model.sample(4)
    assert not log.mixed

The log counts, by operation and line of code:

- ``mixed``: operations on tensors of two devices, and CPU generators that fill device tensors. Real CUDA raises an
  error (a CPU tensor of no dimensions may be mixed in, as in torch);
- ``waits``: the host waits for the device: `.item()`, `bool(tensor)`, `.cpu()`, nonzero, boolean indices (`.tolist()`
  of a pretended tensor raises an error);
- ``copies``: from host to device, index tensors on the host included;
- ``launches``: operations that are no view; a real device launches at least one kernel for each;
- ``recordings`` of CUDA graphs, and what in them ``breaks_capture`` on a real device: waits and copies from the host.

The dispatch keys are CUDA's, so that autocast's rules are too. Kernels, memory and time are not pretended.
"""

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ggm_image.runtime import cuda_graph

CUDA = torch.device("cuda", 0)
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
_WAITING = {"nonzero", "masked_select", "bincount", "unique_dim", "_unique2", "is_nonzero", "equal"}
_PACKAGES = ("ggm_image", "taming", "timm")


@dataclass
class Log:
    """What the device was asked for: counts by operation and line of code."""

    mixed: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    copies: Counter[str] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)
    recordings: Counter[str] = field(default_factory=Counter)
    breaks_capture: Counter[str] = field(default_factory=Counter)

    def clear(self) -> None:
        for counter in vars(self).values():
            counter.clear()


class PretendTensor(torch.Tensor):
    """A tensor that says it is on ``cuda:0``; ``inner`` holds its data on the CPU."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> "PretendTensor":
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=CUDA,
            requires_grad=False,
        )
        made.inner = inner
        return made  # type: ignore[no-any-return]

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"PretendTensor({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert _active is not None, "a pretended tensor outside `pretend_cuda`"
        return _run(func, args, kwargs or {}, _active)


class _Mode(TorchDispatchMode):
    def __init__(self, log: Log) -> None:
        super().__init__()
        self.log = log

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {}, self.log)


class PretendRecorder:
    """A `ggm_image.runtime.cuda_graph.Recorder`: a replay computes again from the same buffers into the same place."""

    def takes(self, device: torch.device) -> bool:
        return device.type == "cuda"

    def has_room(self, device: torch.device) -> bool:
        return True

    def follow(self, device: torch.device) -> None: ...

    def release(self) -> None: ...

    def record(self, compute: Callable[[], torch.Tensor], device: torch.device) -> tuple[torch.Tensor, Any]:
        assert _active is not None, "recorded outside `pretend_cuda`"
        compute()
        before = _active.waits.copy(), _active.copies.copy()
        output = compute()
        _active.breaks_capture += (_active.waits - before[0]) + (_active.copies - before[1])
        _active.recordings[_line()] += 1
        return output, lambda: output.copy_(compute())


_active: Log | None = None


@contextmanager
def pretend_cuda() -> Iterator[Log]:
    """Pretend that the machine has one CUDA device; tensors made inside must not be used outside."""
    global _active
    if not hasattr(torch._C, "_ensureCUDADeviceGuardSet"):
        pytest.skip("this version of torch cannot pretend to have a device")
    torch._C._ensureCUDADeviceGuardSet()
    make_tensor, log = torch.tensor, Log()

    def tensor(data: Any, *args: Any, device: Any = None, **options: Any) -> torch.Tensor:
        # torch.tensor looks for a driver before anything is dispatched
        made = make_tensor(data, *args, **options)
        return made if device is None else made.to(device)

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "_lazy_init": lambda: None,
            "is_available": lambda: True,
            "device_count": lambda: 1,
            "current_device": lambda: 0,
            "is_bf16_supported": lambda including_emulation=True: True,
            "get_device_capability": lambda device=None: (9, 0),
            "synchronize": lambda *_: None,
        }.items():
            patch.setattr(torch.cuda, name, value)
        patch.setattr(cuda_graph, "CudaRecorder", PretendRecorder)
        patch.setattr(torch, "tensor", tensor)
        patch.setattr(torch, "inference_mode", lambda mode=True: torch.no_grad())  # it skips __torch_dispatch__'s keys
        overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        _active = log
        try:
            with _Mode(log):
                yield log
        finally:
            _active = None
            torch.__future__.set_overwrite_module_params_on_conversion(overwrite)


def _line() -> str:
    """The innermost line of the package that asked, or of its caller."""
    frames = [frame for frame in traceback.extract_stack() if "pretend_cuda" not in frame.filename]
    own = [frame for frame in frames if any(f"/{name}/" in frame.filename for name in _PACKAGES)]
    frame = (own or frames)[-1]
    return f"{frame.filename.split('site-packages/')[-1]}:{frame.lineno} {frame.line}"


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _inner(x: Any) -> Any:
    if isinstance(x, PretendTensor):
        return x.inner
    return torch.device("cpu") if isinstance(x, torch.device) and x.type == "cuda" else x


def _run(func: Any, args: Any, kwargs: dict[str, Any], log: Log) -> Any:
    name = str(func).removeprefix("aten.").split(".")[0]
    flat = pytree.tree_leaves((args, kwargs))
    on_device = [x for x in flat if isinstance(x, PretendTensor)]
    on_host = [x for x in flat if isinstance(x, torch.Tensor) and not isinstance(x, PretendTensor)]
    asked = kwargs.get("device")
    to_device = bool(on_device) or _is_cuda(asked)
    if any(isinstance(x, torch.Generator) and x.device.type == "cpu" for x in flat) and to_device:
        log.mixed[f"CPU generator for a device result, {name}: {_line()}"] += 1
    if name == "_to_copy":
        return _copy(func, args, kwargs, log)
    if name in ("_local_scalar_dense", "item"):
        if on_device:
            log.waits[f"item: {_line()}"] += 1
        return func(*pytree.tree_map(_inner, args))
    if name == "copy_":
        target, source = args[0], args[1]
        if isinstance(target, PretendTensor) != isinstance(source, PretendTensor):
            counter = log.copies if isinstance(target, PretendTensor) else log.waits
            counter[f"copy_ of {tuple(target.shape)}: {_line()}"] += 1
        elif on_device:
            log.launches[name] += 1
        func(_inner(target), _inner(source), *args[2:])
        return target
    if on_device:
        _judge(name, args, on_host, log)
    result = func(*pytree.tree_map(_inner, args), **pytree.tree_map(_inner, kwargs))
    if not to_device:
        return result
    tensors = [x for x in pytree.tree_leaves(result) if isinstance(x, torch.Tensor)]
    held = {x.inner.untyped_storage().data_ptr() for x in on_device}
    view = tensors and all(x.untyped_storage().data_ptr() in held for x in tensors) and not name.endswith("_")
    if not view and name not in ("detach", "empty", "empty_like", "new_empty"):
        log.launches[name] += 1
    given = {id(x.inner): x for x in on_device}  # an operation in place returns its argument
    return pytree.tree_map(lambda x: given.get(id(x), PretendTensor(x)) if isinstance(x, torch.Tensor) else x, result)


def _copy(func: Any, args: Any, kwargs: dict[str, Any], log: Log) -> torch.Tensor:
    source, target = args[0], kwargs.get("device")
    from_device = isinstance(source, PretendTensor)
    to_device = from_device if target is None else _is_cuda(target)
    if from_device and not to_device:
        log.waits[f"to the host: {_line()}"] += 1
    elif to_device and not from_device:
        log.copies[f"to the device, {tuple(source.shape)} {source.dtype}: {_line()}"] += 1
    elif from_device:
        log.launches["_to_copy"] += 1
    rest = {key: value for key, value in kwargs.items() if key not in ("device", "non_blocking", "pin_memory")}
    result = func(_inner(source), **rest)
    if result is _inner(source):
        result = result.clone()
    return PretendTensor(result) if to_device else result


def _judge(name: str, args: Any, on_host: list[torch.Tensor], log: Log) -> None:
    """Mixed devices and waits of an operation with at least one device tensor."""
    wrong = [x for x in on_host if x.dim() > 0]
    if name in _INDEXED:
        indices = [x for x in args[1] if x is not None]
        if any(not isinstance(x, PretendTensor) for x in indices):
            log.copies[f"index on the host: {_line()}"] += 1
        if any(x.dtype in (torch.bool, torch.uint8) for x in indices):
            log.waits[f"boolean index: {_line()}"] += 1
        if isinstance(args[0], PretendTensor):
            wrong = [x for x in wrong if not any(x is index for index in indices)]
    if wrong:
        log.mixed[f"{name} with host tensors {[tuple(x.shape) for x in wrong]}: {_line()}"] += 1
    if name in _WAITING:
        log.waits[f"{name}: {_line()}"] += 1
