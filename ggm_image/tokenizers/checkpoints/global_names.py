"""Global names in a pickle, which are never looked up, and the list of names that a weights file must not contain.

Safety does not depend on this list: a call of a forbidden name would do nothing either (see `restricted_unpickler`).
The list is there to reject a hostile file with a clear error instead of loading its weights.
"""

from dataclasses import dataclass

FORBIDDEN = frozenset({
    "_io", "_pickle", "_posixsubprocess", "_thread", "asyncio", "builtins", "__builtin__", "cloudpickle", "code",
    "codeop", "commands", "cProfile", "ctypes", "dill", "distutils", "ensurepip", "faulthandler", "gc", "http",
    "idlelib", "imp", "importlib", "inspect", "io", "joblib", "linecache", "marshal", "mmap", "multiprocessing", "nt",
    "operator", "_operator", "os", "pdb", "pickle", "pip", "pkgutil", "platform", "popen2", "posix", "pty", "pydoc",
    "requests", "runpy", "setuptools", "shelve", "shutil", "signal", "smtplib", "socket", "socketserver", "sqlite3",
    "ssl", "subprocess", "sys", "tempfile", "threading", "timeit", "torch", "types", "urllib", "venv", "webbrowser",
    "zipimport",
})  # fmt: skip
"""First parts of module names from which only data may be taken, as `PLAIN` and `PLAIN_PREFIXES` say."""

_PLAIN_BUILTINS = (
    "basestring", "bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "long",
    "object", "range", "set", "slice", "str", "tuple", "type", "unicode", "xrange",
)  # fmt: skip
PLAIN = frozenset(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in _PLAIN_BUILTINS) | {
    "torch.Size",
    "torch.Tensor",
    "torch.device",
    "torch.UntypedStorage",
    "torch.storage.UntypedStorage",
    "types.SimpleNamespace",
}
"""Names of forbidden modules that hold data only."""

PLAIN_PREFIXES = (
    "torch.optim.", "torch.nn.", "torch.utils.data.", "torch.amp.", "torch.cuda.amp.", "torch._utils._rebuild_",
    "torch.float", "torch.bfloat", "torch.int", "torch.uint", "torch.bool", "torch.complex",
)  # fmt: skip
"""Classes and types of torch that training scripts pickle along."""


@dataclass(frozen=True)
class GlobalName:
    """A name that the file refers to; never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


def is_forbidden(symbol: GlobalName) -> bool:
    """Whether this name must not occur in a weights file."""
    full, reached = str(symbol), symbol.name.split(".")[:-1]
    if FORBIDDEN.intersection(reached):  # through another module: glob with the name "os.system"
        return True
    if symbol.module.split(".")[0] not in FORBIDDEN:
        return False
    return full not in PLAIN and not (full.startswith(PLAIN_PREFIXES) and not reached)
