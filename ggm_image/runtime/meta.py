"""Create modules on the meta device, without memory, to load weights into or to count parameters."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_RANDOM = {
    nn.init.kaiming_uniform_,
    nn.init.normal_,
    nn.init.uniform_,
    torch.Tensor.exponential_,
    torch.Tensor.normal_,
    torch.Tensor.uniform_,
}


class _NoRandomValues(TorchFunctionMode):
    """Random initial values are left out: there is nothing to fill, and torch would import its compiler to do so."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _RANDOM:
            filled = args[0] if args else kwargs["tensor"]
            if filled.is_meta:
                return filled
        return func(*args, **kwargs)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Inside, new tensors are on the meta device, and modules are made without initial values."""
    with torch.device("meta"), _NoRandomValues():
        yield
