"""Dataclasses whose types check their values: pydantic's, with errors of one line.

The one validator of the package: configs of runs, networks and tokenizers, sampler settings and the manifests of token
caches are all classes made by `checked`. Ranges are in the types; what two fields must have in common is checked in
``__post_init__``.
"""

import difflib
import functools
import re
from collections.abc import Callable, Iterable, Mapping
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
    section: str = "",
    *,
    noun: str = "config key",
    fix: str = FIX,
    frozen: bool = False,
    extra: str = "forbid",
    renamed: Mapping[str, str] | None = None,
) -> Callable[[type[C]], type[C]]:
    """A dataclass with keyword arguments, checked when an instance is made.

    Args:
        section: where the class stands in a config, as errors name its fields: ``train`` for ``train.steps``.
        noun: what errors call a field.
        fix: what errors say that a user can do.
        frozen: as of `dataclasses.dataclass`.
        extra: ``forbid`` unknown fields, or ``ignore`` them.
        renamed: old name to new name of fields that were renamed. `build` accepts both.

    Returns:
        The decorator. Making an instance raises UserError.
    """

    def decorate(cls: type[C]) -> type[C]:
        config = ConfigDict(extra=extra, allow_inf_nan=False, coerce_numbers_to_str=True)  # type: ignore[typeddict-item]
        made: Any = dataclass(cls, kw_only=True, frozen=frozen, config=config)
        made.section, made.noun, made.fix = section, noun, fix
        made.renamed = getattr(cls, "renamed", {}) | dict(renamed or {})  # a subclass keeps the old names of its base
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
    """An instance of a `checked` class from nested plain values, in which renamed fields may have their old names.

    Raises:
        UserError: an unknown key, for which the nearest known one is named; a field given by its old and its new name;
            or a value of a wrong type or range.
    """
    if not hasattr(schema, "section"):  # a plain dataclass, of a plugin
        schema = checked()(schema)
    try:
        return TypeAdapter(schema).validate_python(with_new_names(schema, values))
    except ValidationError as error:
        raise _user_error(error, schema) from None


def renamed_fields(schema: Any) -> dict[str, str]:
    """Old to new name of all renamed fields of a `checked` class, nested ones too, with dots between levels."""
    names = dict(getattr(schema, "renamed", {}))
    for key, nested in _nested(schema):
        names |= {f"{key}.{old}": f"{key}.{new}" for old, new in renamed_fields(nested).items()}
    return names


def with_new_names(schema: Any, values: Any) -> Any:
    """Nested plain values with the old names of fields replaced; anything but a table is returned as it is."""
    if not isinstance(values, Mapping):
        return values
    names: Mapping[Any, str] = getattr(schema, "renamed", {})
    found: dict[Any, Any] = {}
    for key, value in values.items():
        name = names.get(key, key)
        if name != key and name in values:
            prefix = f"{schema.section}." if schema.section else ""
            raise UserError(f"{schema.noun} {prefix}{key} is the old name of {prefix}{name}", "both", "remove the old")
        found[name] = value
    for key, nested in _nested(schema):
        if key in found:
            found[key] = with_new_names(nested, found[key])
    return found


def _nested(schema: Any) -> list[tuple[str, Any]]:
    """The fields of a dataclass that are dataclasses themselves, with their types."""
    hints = get_type_hints(schema)
    return [(entry.name, hints[entry.name]) for entry in fields(schema) if is_dataclass(hints[entry.name])]


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
    keys, prefix, nested = [], f"{section}." if section else "", dict(_nested(schema))
    for entry in fields(schema):
        keys.append(prefix + entry.name)
        if entry.name in nested:
            keys += _keys(nested[entry.name], prefix + entry.name)
    return keys
