"""The denoising network."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ggm_image.network.config import NetworkConfig
    from ggm_image.network.transformer import Transformer

__all__ = ["NetworkConfig", "Transformer"]

_HOMES = {"NetworkConfig": "ggm_image.network.config", "Transformer": "ggm_image.network.transformer"}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
