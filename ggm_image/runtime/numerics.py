"""Isolate public functions from the caller's global PyTorch state, so that it cannot change a result.

A sample depends on (seed, index, class, settings) alone, and tokens on their image alone. PyTorch's global
state would affect them too. `isolated` sets it and restores it:

| state | inside |
| --- | --- |
| autocast | off |
| default dtype, default device | float32, cpu |
| gradients, inference mode | off |
| float32 products and convolutions | float32: no TF32, no bfloat16 |
| cuDNN | on, deterministic algorithms, no benchmark |
| deterministic algorithms | off: they replace kernels, and some operations have none |
| oneDNN, reduced bfloat16 reductions | on |
| attention | flash, memory-efficient, plain; not cuDNN's, see `ggm_image.network.transformer` |

The number of threads is the machine's.
"""

import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

F = TypeVar("F", bound=Callable[..., Any])

_AUTOCAST = ("cpu", "cuda", "mps", "xpu")
_UNREADABLE = object()


@dataclass(frozen=True)
class _Switch:
    """State of the whole process: how to read it, how to write it, and its value inside."""

    read: Callable[[], Any]
    write: Callable[[Any], None]
    rule: Any

    def value(self) -> Any:
        try:
            return self.read()
        except RuntimeError:  # torch's old and new names of a precision contradict each other: the new ones count
            return _UNREADABLE


def _attribute(owner: Any, name: str, rule: Any) -> _Switch:
    return _Switch(lambda: getattr(owner, name), lambda value: setattr(owner, name, value), rule)


def _matmul_precision() -> str:
    """torch's old name for the precision of products; asked only where it can differ, since asking may warn."""
    new = getattr(torch.backends.cuda.matmul, "fp32_precision", None), _onednn_precision()
    return "highest" if all(value in ("none", "ieee") for value in new) else torch.get_float32_matmul_precision()


def _onednn_precision() -> str | None:
    return getattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision", None)


def _switches() -> list[_Switch]:
    backends: Any = torch.backends
    cudnn = backends.cudnn
    found = [
        _Switch(torch.get_default_dtype, torch.set_default_dtype, torch.float32),
        _Switch(_matmul_precision, torch.set_float32_matmul_precision, "highest"),
        _attribute(cudnn, "allow_tf32", False),
        _attribute(cudnn, "enabled", True),
        _attribute(cudnn, "benchmark", False),
        _attribute(cudnn, "deterministic", True),
        _attribute(backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", True),
        _Switch(torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled, True),
        _Switch(
            lambda: (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
            lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
            (False, False),
        ),
    ]
    for name, rule in (("flash", True), ("mem_efficient", True), ("math", True), ("cudnn", False)):
        read = getattr(backends.cuda, f"{name}_sdp_enabled")
        found.append(_Switch(read, getattr(backends.cuda, f"enable_{name}_sdp"), rule))
    if hasattr(backends, "fp32_precision"):  # torch 2.9 and later; written after the old names, which change these
        parts = backends.cuda.matmul, cudnn.conv, cudnn.rnn, backends.mkldnn.matmul, backends.mkldnn.conv
        found += [_attribute(part, "fp32_precision", "ieee") for part in parts]
    else:
        found.append(_attribute(backends.cuda.matmul, "allow_tf32", False))
    return found


_lock = threading.Lock()
_inside = 0
_restore: list[tuple[_Switch, Any]] = []


@contextmanager
def _fixed_switches() -> Iterator[None]:
    """The first to enter fixes the state of the process, and the last to leave restores it, in any thread."""
    global _inside
    with _lock:
        if not _inside:
            before = [(switch, switch.value()) for switch in _switches()]
            _restore[:] = [(switch, value) for switch, value in before if value is not _UNREADABLE]
            for switch, value in _restore:
                if value != switch.rule:
                    switch.write(switch.rule)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                for switch, value in _restore:
                    if switch.value() != value:
                        switch.write(value)


@contextmanager
def isolated() -> Iterator[None]:
    """Run the body in the state of the table above, and restore the caller's state at the end.

    Autocast, default device and gradients are restored in this thread; the rest belongs to the process: other threads
    see it too while the body runs.
    """
    with ExitStack() as stack:
        stack.enter_context(_fixed_switches())
        for kind in _AUTOCAST:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        yield


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """As `isolated`, in inference mode: faster, for tensors that do not leave the package."""
    with isolated(), torch.inference_mode():
        yield


def isolate(function: F) -> F:
    """Decorate a function, method or generator function: its own code runs `isolated`, and a generator's caller not."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generate(*arguments: Any, **options: Any) -> Iterator[Any]:
            steps, end = function(*arguments, **options), object()
            try:
                while True:
                    with isolated():
                        item = next(steps, end)
                    if item is end:
                        return
                    yield item
            finally:
                with isolated():
                    steps.close()

        return generate  # type: ignore[return-value]

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        with isolated():
            return function(*arguments, **options)

    return call  # type: ignore[return-value]
