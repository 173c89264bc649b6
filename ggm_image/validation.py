"""Dataclasses whose types check their values: pydantic's, with errors of one line.

The one validator of the package: configs of runs, networks and tokenizers, sampler settings and the manifests of token
caches are all classes made by `checked`. Ranges are in the types; what two fields must have in common is checked in
``__post_init__``.
"""

import difflib
import functools
import re
from collections.abc import Callable, Iterable
from dataclasses import field, fields, is_dataclass
from typing import Annotated, Any, TypeVar, get_type_hints

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from typing_extensions import dataclass_transform

from ggm_image.errors import UserError

C = TypeVar("C")
T = TypeVar("T")

FIX = "change it in the config or give key=value"


def _no_bool(value: T) -> T:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


Whole = Annotated[int, BeforeValidator(_no_bool)]
Number = Annotated[float, BeforeValidator(_no_bool)]
PositiveInt = Annotated[Whole, Field(gt=0)]
NaturalInt = Annotated[Whole, Field(ge=0)]
PositiveFloat = Annotated[Number, Field(gt=0)]
NaturalFloat = Annotated[Number, Field(ge=0)]
Fraction = Annotated[Number, Field(ge=0, le=1)]


def one_of(names: Iterable[str]) -> AfterValidator:
    """One of these names, which are looked up when a value is checked: a registry may have grown since."""

    def check(value: str) -> str:
        if value not in names:
            raise ValueError(f"must be one of {', '.join(names)}")
        return value

    return AfterValidator(check)


@dataclass_transform(kw_only_default=True, field_specifiers=(field, Field))
def checked(
    section: str = "", *, noun: str = "config key", fix: str = FIX, frozen: bool = False, extra: str = "forbid"
) -> Callable[[type[C]], type[C]]:
    """A dataclass with keyword arguments, checked when an instance is made.

    Args:
        section: where the class stands in a config, as errors name its fields: ``train`` for ``train.steps``.
        noun: what errors call a field.
        fix: what errors say that a user can do.
        frozen: as of `dataclasses.dataclass`.
        extra: ``forbid`` unknown fields, or ``ignore`` them.

    Returns:
        The decorator. Making an instance raises UserError.
    """

    def decorate(cls: type[C]) -> type[C]:
        config = ConfigDict(extra=extra, allow_inf_nan=False, coerce_numbers_to_str=True)  # type: ignore[typeddict-item]
        made: Any = dataclass(cls, kw_only=True, frozen=frozen, config=config)
        made.section, made.noun, made.fix = section, noun, fix
        initialise = made.__init__

        @functools.wraps(initialise)
        def __init__(self: Any, *args: Any, **values: Any) -> None:
            try:
                initialise(self, *args, **values)
            except ValidationError as error:
                raise _user_error(error, made) from None

        made.__init__ = __init__
        return made

    return decorate


def build(schema: type[C], values: Any) -> C:
    """An instance of a `checked` class from nested plain values.

    Raises:
        UserError: an unknown key, for which the nearest known one is named, or a value of a wrong type or range.
    """
    if not hasattr(schema, "section"):  # a plain dataclass, of a plugin
        schema = checked()(schema)
    try:
        return TypeAdapter(schema).validate_python(values)
    except ValidationError as error:
        raise _user_error(error, schema) from None


def _user_error(error: ValidationError, schema: Any) -> UserError:
    """The first thing that is wrong."""
    first = error.errors(include_url=False)[0]
    if isinstance(cause := first.get("ctx", {}).get("error"), UserError):
        return cause
    parts = ([schema.section] if schema.section else []) + [str(part) for part in first["loc"]]
    key, kind, got = ".".join(parts), first["type"], first["input"]
    if kind == "unexpected_keyword_argument":
        known = _keys(schema, schema.section)
        last = {name.rpartition(".")[2]: name for name in reversed(known)}
        near = difflib.get_close_matches(key, known, n=1) or difflib.get_close_matches(parts[-1], last, n=1)
        inside = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == ".".join(parts[:-1])]
        fix = f"did you mean {last.get(near[0], near[0])}?" if near else f"choose one of {', '.join(inside)}"
        return UserError(f"unknown {schema.noun}", key, fix)
    if kind == "dataclass_type":
        return UserError(f"{schema.noun} {key} must hold keys" if key else "config must hold keys", got, schema.fix)
    words = re.sub("^(Input|List|Tuple) should", "must", first["msg"].removeprefix("Value error, "))
    return UserError(f"{key}{' ' if words.startswith('must') else ': '}{words}", got, schema.fix)


def _keys(schema: Any, section: str) -> list[str]:
    """The names of all fields, nested ones too, as errors name them."""
    hints, keys, prefix = get_type_hints(schema), [], f"{section}." if section else ""
    for entry in fields(schema):
        keys.append(prefix + entry.name)
        if is_dataclass(hints[entry.name]):
            keys += _keys(hints[entry.name], prefix + entry.name)
    return keys
