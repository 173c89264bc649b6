"""Read a pickle as data: containers are built and storages are named, but nothing is imported or called.

Pickle (https://docs.python.org/3/library/pickle.html) is a program for a small stack machine, and two of its
instructions call any function that the file names. This interpreter runs the same programs safely: a name becomes a
`GlobalName` (two strings), a call becomes a `Stub` that only records what would have been called, and the few
calls that every weights file needs (tensors, OrderedDict, torch.Size) are made by our own functions. So a
Lightning checkpoint that contains callbacks and configs can be read; these objects are ignored.

Names that have no place in a weights file are still refused: see `global_names`.

torch.load(weights_only=True) works in a similar way, but refuses most Lightning checkpoints because of their callbacks,
and allocates memory for a tensor before it checks how much data the file holds.
"""

import io
import pickletools
import warnings
from collections.abc import Callable
from typing import Any

from ggm_image.errors import UserError
from ggm_image.tokenizers.checkpoints.global_names import GlobalName, is_forbidden

MAX_BYTES = 64 << 20  # of one pickle: the weights themselves lie elsewhere, names and sizes take kilobytes
MAX_STEPS = 1_000_000  # instructions; a checkpoint with optimizer states takes a hundred thousand
MAX_DEPTH = 500  # containers opened inside each other


class Stub:
    """What a call or an instance would have been: only its origin is kept."""

    __slots__ = ("origin",)

    def __init__(self, origin: object) -> None:
        # Anything else may be nested so deep, or hold itself so often, that to write it out would never end.
        named = isinstance(origin, str | GlobalName | Stub)
        self.origin = str(origin)[:200] if named else f"a {type(origin).__name__}"

    def __str__(self) -> str:
        return self.origin


Builder = Callable[..., Any]
_MARK = object()


class RestrictedUnpickler:
    """One pickle's stack, memo and result.

    Args:
        builders: what may be built, by full name; each gets the arguments that the file gives.
        persistent: makes the object of a persistent id.
    """

    def __init__(
        self, builders: dict[str, Builder], values: dict[str, Any], persistent: Callable[[Any], Any] | None = None
    ) -> None:
        self.builders, self.values, self.persistent = builders, values, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.depth = 0

    def run(self, data: bytes) -> tuple[Any, int]:
        """Read one pickle from the start of ``data``."""
        try:
            with warnings.catch_warnings():
                # pickletools decodes text of protocol 0 as Python source: a damaged file would print a warning.
                warnings.filterwarnings("ignore", ".*invalid (octal )?escape sequence")
                for step, (opcode, argument, position) in enumerate(pickletools.genops(io.BytesIO(data))):
                    if step > MAX_STEPS:
                        raise _unlike("its pickle has more than a million instructions")
                    if opcode.name == "STOP":
                        return self.top(pop=True), (position or 0) + 1
                    self.step(opcode.name, argument)
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                "the file must hold a whole pickle", f"{type(error).__name__}: {error}", "it is damaged: copy it again"
            ) from error
        raise UserError("the file must hold a whole pickle", "it ends too early", "it is damaged: copy it again")

    def step(self, name: str, argument: Any) -> None:
        """Carry out one instruction."""
        push = self.stack.append
        if name in _CONSTANTS:
            push(_CONSTANTS[name])
        elif name in _LITERALS:
            push(argument)
        elif name in _EMPTY:
            push(_EMPTY[name]())
        # Protocol and framing do not change what is read.
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MARK":
            # A hostile file could nest containers so deeply that code that walks the result exhausts the stack.
            self.depth += 1
            if self.depth > MAX_DEPTH:
                raise _unlike(f"containers lie more than {MAX_DEPTH} deep in each other")
            push(_MARK)
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            push(self.memo[argument])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.top()
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.top()
        # Instructions that build containers or call something have functions of their own.
        elif name in _STEPS:
            _STEPS[name](self, argument)
        else:
            raise _unlike(f"its pickle has the instruction {name}")

    def top(self, *, pop: bool = False) -> Any:
        """The last object of the stack, which must not be a mark."""
        if self.stack[-1] is _MARK:
            raise ValueError("a mark in place of an object")
        return self.stack.pop() if pop else self.stack[-1]

    def since_mark(self) -> list[Any]:
        """Take everything above the last mark from the stack."""
        items: list[Any] = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        self.depth -= 1
        return items[::-1]

    def symbol(self, module: Any, name: Any) -> Any:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("a name that is no text")
        symbol = GlobalName(module, name)
        full = str(symbol)
        if full in self.values:
            return self.values[full]
        if full not in self.builders and is_forbidden(symbol):
            raise UserError(
                "a weights file must hold tensors and plain data only",
                f"it names {full[:100]}",
                "it may be hostile: nothing of it was run; remove it and get the weights elsewhere",
            )
        return symbol

    def call(self, function: Any, arguments: Any) -> Any:
        """What a call gives: a tensor or a container by our own builders, or something inert."""
        builder = self.builders.get(str(function)) if isinstance(function, GlobalName) else None
        if builder is None or not isinstance(arguments, tuple):
            return Stub(function)
        return builder(*arguments)


def _set_items(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict):
        return  # an inert object keeps nothing
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Hashing recurses into tuples, and a file can nest them as deep as it likes; no weight has such a name.
        target[key if isinstance(key, _KEYS) else Stub(type(key).__name__)] = value


def _extend(target: Any, items: list[Any]) -> None:
    if isinstance(target, list):
        target.extend(items)


def _set_item(m: RestrictedUnpickler, _: Any) -> None:
    value, key = m.top(pop=True), m.top(pop=True)
    _set_items(m.stack[-1], [key, value])


def _set_many(m: RestrictedUnpickler, _: Any) -> None:
    items = m.since_mark()
    _set_items(m.stack[-1], items)


def _append(m: RestrictedUnpickler, _: Any) -> None:
    value = m.top(pop=True)
    _extend(m.stack[-1], [value])


def _append_many(m: RestrictedUnpickler, _: Any) -> None:
    items = m.since_mark()
    _extend(m.stack[-1], items)


def _make_dict(m: RestrictedUnpickler, _: Any) -> None:
    made: dict[Any, Any] = {}
    _set_items(made, m.since_mark())
    m.stack.append(made)


def _make_tuple(m: RestrictedUnpickler, _: Any) -> None:
    m.stack.append(tuple(m.since_mark()))


def _short_tuple(count: int) -> Callable[[RestrictedUnpickler, Any], None]:
    def make(m: RestrictedUnpickler, _: Any) -> None:
        items = [m.top(pop=True) for _ in range(count)]
        m.stack.append(tuple(items[::-1]))

    return make


def _make_list(m: RestrictedUnpickler, _: Any) -> None:
    m.stack.append(m.since_mark())


def _global(m: RestrictedUnpickler, argument: Any) -> None:
    module, _, name = argument.partition(" ")
    m.stack.append(m.symbol(module, name))


def _stack_global(m: RestrictedUnpickler, _: Any) -> None:
    name, module = m.top(pop=True), m.top(pop=True)
    m.stack.append(m.symbol(module, name))


def _reduce(m: RestrictedUnpickler, _: Any) -> None:
    arguments, function = m.top(pop=True), m.top(pop=True)
    m.stack.append(m.call(function, arguments))


def _new_object(m: RestrictedUnpickler, _: Any) -> None:
    arguments, cls = m.top(pop=True), m.top(pop=True)
    m.stack.append(m.call(cls, arguments))


def _new_object_ex(m: RestrictedUnpickler, _: Any) -> None:
    m.top(pop=True)
    _new_object(m, None)


def _old_object(m: RestrictedUnpickler, _: Any) -> None:
    cls, *_arguments = m.since_mark()
    m.stack.append(Stub(cls))


def _old_instance(m: RestrictedUnpickler, argument: Any) -> None:
    m.since_mark()
    module, _, name = argument.partition(" ")
    m.stack.append(Stub(m.symbol(module, name)))


def _build(m: RestrictedUnpickler, _: Any) -> None:
    m.top(pop=True)  # state: attributes of a container (a state dict's versions) or of something inert
    m.top()


def _persistent(m: RestrictedUnpickler, _: Any) -> None:
    identity = m.top(pop=True)
    m.stack.append(Stub("persistent id") if m.persistent is None else m.persistent(identity))


def _pop(m: RestrictedUnpickler, _: Any) -> None:
    if m.stack.pop() is _MARK:
        m.depth -= 1


def _duplicate(m: RestrictedUnpickler, _: Any) -> None:
    m.stack.append(m.top())


def _pop_mark(m: RestrictedUnpickler, _: Any) -> None:
    m.since_mark()


_KEYS = (str, bytes, int, float, bool, type(None), GlobalName)
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = frozenset({
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE",
    "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
})  # fmt: skip
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list,  # sets are kept as lists: what is in them may not be hashed
}
_STEPS: dict[str, Callable[[RestrictedUnpickler, Any], None]] = {
    "SETITEM": _set_item,
    "SETITEMS": _set_many,
    "APPEND": _append,
    "APPENDS": _append_many,
    "ADDITEMS": _append_many,
    "DICT": _make_dict,
    "LIST": _make_list,
    "FROZENSET": _make_list,
    "TUPLE": _make_tuple,
    "TUPLE1": _short_tuple(1),
    "TUPLE2": _short_tuple(2),
    "TUPLE3": _short_tuple(3),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "NEWOBJ": _new_object,
    "NEWOBJ_EX": _new_object_ex,
    "OBJ": _old_object,
    "INST": _old_instance,
    "BUILD": _build,
    "BINPERSID": _persistent,
    "POP": _pop,
    "POP_MARK": _pop_mark,
    "DUP": _duplicate,
}


def _unlike(got: str) -> UserError:
    return UserError("the file must be a checkpoint of weights", got, "it is damaged or hostile: get it elsewhere")
