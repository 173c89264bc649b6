"""Open weights files of any format without executing code: names and shapes first, values on request.

| begins with | format |
| --- | --- |
| ``PK`` | torch.save since 1.6: a zip of a pickle and one file a storage |
| a pickled number | torch.save before 1.6: five pickles, then the storages one after another |
| a length and ``{`` | safetensors |

Every size in a pickle is checked against the size of the file before memory is allocated: storages must be
uncompressed and complete, and a tensor must lie within its storage and have no more elements than it. A file of n
bytes therefore cannot allocate much more than n bytes of memory. Pickles are read by `restricted_unpickler`.
"""

import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ggm_image.errors import UserError
from ggm_image.io.safetensors import check_shapes, load_state
from ggm_image.tokenizers.checkpoints.restricted_unpickler import MAX_BYTES, Builder, RestrictedUnpickler, Stub

MAX_ENTRIES = 100_000  # files in a zip: one a tensor
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_STATE_KEYS = ("ema", "state_dict", "model", "module")
"""Where training scripts put the weights; LlamaGen's own loader takes ``ema`` before ``model``."""

_TYPES = {
    "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16, "Double": torch.float64,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool,
}  # fmt: skip
_STORAGES = {f"torch.{name}Storage": dtype for name, dtype in _TYPES.items()} | {
    f"torch.cuda.{name}Storage": dtype for name, dtype in _TYPES.items()
}


# What zipfile raises of damaged files besides its own error: names that are no text, methods that it lacks; and an
# OSError without a file's name, for places before the beginning.
_DAMAGE = (
    zipfile.BadZipFile, SafetensorError, EOFError, NotImplementedError, RuntimeError, ValueError, OverflowError,
    struct.error, zlib.error,
)  # fmt: skip


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that lies in an open file."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]

    def read(self) -> Tensor:
        """The tensor, on the CPU, contiguous."""
        try:
            return self.load()
        except (*_DAMAGE, OSError) as error:
            raise UserError("weights must be whole", f"{self.shape}: {error}", "copy the file again") from error


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    numel: int
    read: Callable[[], Tensor]


@contextmanager
def open_weights(path: Path) -> Iterator[dict[str, StoredTensor]]:
    """The tensors of a weights file by name; they can be read while it is open.

    Args:
        path: a safetensors file, or what torch.save wrote: a state dict, or a dict that holds one under
            ``state_dict``, ``model`` or ``ema``. All else in it is ignored.
    """
    with ExitStack() as stack:
        try:
            tensors = _open(path, stack)
        except UserError as error:
            raise UserError(f"{path}: {error.what}", error.got, error.fix) from error
        except (*_DAMAGE, OSError) as error:
            if isinstance(error, OSError) and error.filename is not None:  # not to be opened at all
                raise
            raise UserError(f"{path} must be a whole weights file", str(error), "copy it again") from error
        yield tensors


def _open(path: Path, stack: ExitStack) -> dict[str, StoredTensor]:
    if not path.is_file():
        raise UserError("file of weights not found", "no such file", "check the path")
    if path.suffix == ".safetensors":  # never parse such a file as a pickle
        return _safe_tensors(path, stack)
    size = path.stat().st_size
    file = stack.enter_context(path.open("rb"))
    start = file.read(64)
    file.seek(0)
    if start[:2] == b"PK":
        return _zip_tensors(stack.enter_context(zipfile.ZipFile(file)), size)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < size:
        return _safe_tensors(path, stack)
    if start[:1] == b"\x80":
        return _legacy_tensors(file, size)
    raise _not_weights("neither safetensors nor what torch.save writes", f"begins with {start[:8]!r}")


def _safe_tensors(path: Path, stack: ExitStack) -> dict[str, StoredTensor]:
    try:
        opened = stack.enter_context(safe_open(path, framework="pt", device="cpu"))
    except SafetensorError as error:
        raise UserError("the file must be a whole safetensors file", str(error), "copy it again") from error
    return {name: _safe_tensor(opened, name) for name in opened.keys()}  # noqa: SIM118


def _safe_tensor(opened: Any, name: str) -> StoredTensor:
    entry = opened.get_slice(name)
    dtype = {
        "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
        "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
        "BOOL": torch.bool,
    }.get(entry.get_dtype(), torch.uint8)  # fmt: skip
    return StoredTensor(tuple(entry.get_shape()), dtype, lambda: opened.get_tensor(name))


def _zip_tensors(archive: zipfile.ZipFile, file_size: int) -> dict[str, StoredTensor]:
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if len(entries) > MAX_ENTRIES or info.filename in entries:
            raise _not_weights("its zip has too many entries, or two of one name", info.filename)
        entries[info.filename] = info
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        inside = [name for name in entries if name.endswith((".ckpt", ".pt", ".pth"))]
        fix = f"unpack {inside[0]} and give that" if inside else "give the checkpoint itself"
        raise UserError("a zip must be what torch.save writes", f"{len(pickles)} data.pkl in it", fix)
    # torch.save puts everything below one folder, whose name it takes from the file.
    root = pickles[0][: -len("data.pkl")]
    if f"{root}constants.pkl" in entries:
        raise _not_weights("it is a TorchScript program", root)

    def content(name: str, limit: int | None = None) -> zipfile.ZipInfo:
        info = entries.get(name)
        if info is None:
            raise _not_weights("a storage is missing", name)
        # torch.save stores without compression, so the sizes bound the memory that reading takes.
        whole = info.header_offset + info.file_size <= file_size and info.compress_size == info.file_size
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or not whole:
            raise _not_weights("a part is compressed, encrypted or cut off", f"{name}: {info.file_size} bytes")
        if limit is not None and info.file_size > limit:
            raise _not_weights("its pickle is far too large", f"{info.file_size} bytes")
        return info

    if f"{root}byteorder" in entries and archive.read(content(f"{root}byteorder", 16)) != b"little":
        raise _not_weights("its numbers are big-endian", root)

    def storage(key: str, dtype: torch.dtype, numel: int) -> _Storage:
        info = content(f"{root}data/{key}")
        if info.file_size != numel * dtype.itemsize:
            raise _not_weights(f"{numel} numbers in {info.file_size} bytes", f"storage {key}")
        return _Storage(dtype, numel, lambda: _numbers(archive.read(info), dtype))

    machine = RestrictedUnpickler(_BUILDERS, dict(_STORAGES), _persistent(storage))
    root_object, _ = machine.run(archive.read(content(pickles[0], MAX_BYTES)))
    return _find_state(root_object)


def _legacy_tensors(file: BinaryIO, file_size: int) -> dict[str, StoredTensor]:
    data = file.read(MAX_BYTES)
    magic, position = RestrictedUnpickler({}, {}).run(data)
    if magic != _LEGACY_MAGIC:
        raise _not_weights("a pickle of something else", type(magic).__name__)
    for _ in range(2):  # version of the protocol, sizes of C's types
        _, used = RestrictedUnpickler({}, {}).run(data[position : position + (1 << 16)])
        position += used
    declared: dict[str, tuple[torch.dtype, int]] = {}
    places: dict[str, int] = {}

    def storage(key: str, dtype: torch.dtype, numel: int) -> _Storage:
        if declared.setdefault(key, (dtype, numel)) != (dtype, numel):
            raise _not_weights("a storage has two sizes", key)
        if numel * dtype.itemsize > file_size:
            raise _not_weights(f"{numel} numbers in a file of {file_size} bytes", f"storage {key}")

        def read() -> Tensor:
            file.seek(places[key])
            return _numbers(file.read(numel * dtype.itemsize), dtype)

        return _Storage(dtype, numel, read)

    root_object, used = RestrictedUnpickler(_BUILDERS, dict(_STORAGES), _persistent(storage)).run(data[position:])
    position += used
    keys, used = RestrictedUnpickler({}, {}).run(data[position:])
    position += used
    for key in keys if isinstance(keys, list) else []:
        if not isinstance(key, str) or key not in declared:
            raise _not_weights("a storage that no tensor uses", f"after {len(places)} others")
        dtype, numel = declared[key]
        file.seek(position)
        if int.from_bytes(file.read(8), "little", signed=True) != numel:
            raise _not_weights("a storage is not of the size it should be", f"storage {key}")
        places[key] = position + 8
        position += 8 + numel * dtype.itemsize
    if position > file_size or places.keys() != declared.keys():
        raise UserError("the file must hold all its weights", "it is cut off", "copy it again")
    return _find_state(root_object)


def _numbers(data: bytes, dtype: torch.dtype) -> Tensor:
    if not data:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype)


def _persistent(storage: Callable[[str, torch.dtype, int], _Storage]) -> Callable[[Any], Any]:
    def make(identity: Any) -> Any:
        match identity:
            case ("storage", torch.dtype() as dtype, str(key), _, int(numel)) if numel >= 0:
                return storage(key, dtype, numel)
            case ("storage", torch.dtype() as dtype, str(key), _, int(numel), None) if numel >= 0:
                return storage(key, dtype, numel)
        return Stub("persistent id")

    return make


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Any:
    if not isinstance(storage, _Storage):
        return Stub("tensor of an unknown storage")
    if not (isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= 16):
        raise _not_weights("a tensor without proper sizes and strides", type(size).__name__)
    if not all(type(n) is int and 0 <= n < 1 << 63 for n in (offset, *size, *stride)):
        raise _not_weights("a tensor with sizes that are no counts", f"{len(size)} dimensions")
    numel = 1
    for n in size:
        numel *= n
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # More elements than numbers: an expanded view, which would be small in the file and huge in memory.
    if numel and (last >= storage.numel or numel > storage.numel):
        raise _not_weights("a tensor larger than its storage", f"{size}, {storage.numel} numbers"[:100])

    def read() -> Tensor:
        values = storage.read()
        if not numel:
            return torch.empty(size, dtype=storage.dtype)
        return torch.as_strided(values, size, stride, offset).contiguous()

    return StoredTensor(size, storage.dtype, read)


def _ordered(*items: Any) -> dict[Any, Any]:
    made: dict[Any, Any] = {}
    for pair in items[0] if items and isinstance(items[0], list | tuple) else ():
        if isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str):
            made[pair[0]] = pair[1]
    return made


def _first(value: Any, *_: Any) -> Any:
    return value


def _of_type(function: Any, _: Any, arguments: Any, *__: Any) -> Any:
    builder = _BUILDERS.get(str(function))
    return builder(*arguments) if builder and isinstance(arguments, tuple) else Stub(function)


_BUILDERS: dict[str, Builder] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch.Size": lambda *sizes: tuple(sizes[0]) if sizes and isinstance(sizes[0], list | tuple) else (),
    "collections.OrderedDict": _ordered,
    "collections.defaultdict": lambda *_: {},
}


def _find_state(root: Any) -> dict[str, StoredTensor]:
    """The state dict in what was saved: the dict of tensors itself, or the one under a usual key."""
    if isinstance(root, Mapping):
        for candidate in (*(root.get(key) for key in _STATE_KEYS), root):
            if isinstance(candidate, Mapping):
                tensors = {k: v for k, v in candidate.items() if isinstance(k, str) and isinstance(v, StoredTensor)}
                if tensors:
                    return tensors
    kind = f"a pickled {root.origin}" if isinstance(root, Stub) else type(root).__name__
    raise _not_weights("no state dict in it", kind)


def _not_weights(what: str, got: object) -> UserError:
    return UserError("the file must be a checkpoint of weights", f"{what}: {got}", "it is damaged or not a checkpoint")


def load_stored(module: nn.Module, tensors: Mapping[str, StoredTensor], names: Mapping[str, str], path: Path) -> None:
    """Load the tensors of an open weights file into a module of exactly their shapes.

    Shapes are compared before a value is read. A matrix fits a 1 x 1 convolution; half precision is widened.

    Args:
        module: what to fill; it may be on the meta device, so that its own values are never initialised.
        names: {name in the module: name in the file}.
    """
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    found = {name: tensors[theirs].shape for name, theirs in names.items()}
    for name, shape in found.items():
        if wanted.get(name) == (*shape, 1, 1):
            found[name] = wanted[name]
    check_shapes(module, found, path)
    state = {name: tensors[theirs].read().view(wanted[name]).float() for name, theirs in names.items()}
    load_state(module, state, path, assign=True)
