"""Glauber generative model for images: discrete diffusion over VQ tokens, telling signal from noise.

`load_model` gives a model that samples and inpaints, `load_tokenizer` one that turns images into tokens and
back. Importing the package is quick; what needs torch is imported when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ggm_image.pipelines.load import load_model
    from ggm_image.tokenizers.registry import load_tokenizer

    __version__: str

__all__ = ["__version__", "load_model", "load_tokenizer"]

_HOMES = {"load_model": "ggm_image.pipelines.load", "load_tokenizer": "ggm_image.tokenizers.registry"}


def __getattr__(name: str) -> Any:
    from importlib import import_module, metadata

    if name == "__version__":
        try:
            return metadata.version("ggm-image")
        except metadata.PackageNotFoundError:
            return "0+unknown"  # run from a checkout that was never installed
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
