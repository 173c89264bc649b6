"""The shapes in signatures, checked while the tests run: `SHAPES=1 pytest`, or `make test-shapes`."""

import typing
from collections.abc import Callable
from typing import Any, TypeVar

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, install_import_hook

F = TypeVar("F", bound=Callable[..., Any])
ROOMS = (
    "glauber", "schedule", "objective", "sampler", "network", "pipelines", "tokenizers", "training", "metrics",
    "image", "data", "classifiers", "web", "runtime",
)  # fmt: skip
_CONF = BeartypeConf(is_pep484_tower=True)  # an int is a float, as mypy has it


def install() -> None:
    """Check the shapes of every module of `ROOMS` that is imported from now on."""
    install_import_hook([f"ggm_image.{room}" for room in ROOMS], f"{__name__}.check")


def check(function: F) -> F:
    """A typechecker of the annotations that state a shape. mypy checks the others, and tests pass stand-ins there."""
    stated = {name: hint for name, hint in function.__annotations__.items() if _has_shape(hint)}
    if not stated:
        return function
    function.__annotations__ = stated
    return beartype(conf=_CONF)(function)


def _has_shape(hint: Any) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(_has_shape(part) for part in typing.get_args(hint))
