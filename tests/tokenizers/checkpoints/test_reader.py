"""Weights files of others: read as they were saved, and refused when they are hostile, damaged or absurd."""

import argparse
import builtins
import collections
import contextlib
import io
import os
import pathlib
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from ggm_image.errors import UserError
from ggm_image.tokenizers.checkpoints import reader
from ggm_image.tokenizers.checkpoints.reader import open_weights
from ggm_image.tokenizers.checkpoints.restricted_unpickler import RestrictedUnpickler


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    with open_weights(path) as tensors:
        for tensor in tensors.values():
            value = tensor.read()
            assert (tuple(value.shape), value.dtype) == (tensor.shape, tensor.dtype)
            assert value.is_contiguous()
        return {name: tensor.read() for name, tensor in tensors.items()}


def state() -> "OrderedDict[str, torch.Tensor]":
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(6, 8, generator=generator)
    made = OrderedDict(
        weight=torch.nn.Parameter(whole.clone()),
        view=whole[2:5, ::2],
        turned=whole.t(),
        shared=whole,
        half=whole.half(),
        brain=whole.bfloat16(),
        counts=torch.arange(5),
        scalar=torch.tensor(2.5),
        empty=torch.empty(0, 3),
    )
    made._metadata = {"": {"version": 1}}  # as Module.state_dict does
    return made


class Enumerated(str):
    """A class of somebody's training script, pickled by __reduce__."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return Enumerated, (str(self),)


def lightning(weights: Any) -> dict[str, Any]:
    """What a Lightning checkpoint holds beside its state dict, callbacks and configs pickled whole."""
    from pytorch_lightning.callbacks import ModelCheckpoint

    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))])
    optimizer.param_groups[0]["params"][0].grad = torch.ones(3)
    optimizer.step()
    return {
        "epoch": 3,
        "callbacks": {ModelCheckpoint: {"best_model_score": torch.tensor(1.5), "path": pathlib.PosixPath("/a")}},
        "objects": [ModelCheckpoint(monitor=None), Enumerated("x"), {1, 2}, frozenset({3}), 1 << 70, b"bytes"],
        "hyper_parameters": OmegaConf.create({"model": {"lr": 1e-4, "sizes": [1, 2]}}),
        "args": argparse.Namespace(gpus="0,", dtype=torch.float16, device=torch.device("cpu")),
        "numpy": [np.float64(1), np.arange(3)],
        "optimizer_states": [optimizer.state_dict()],
        "counts": collections.defaultdict(int, {"a": 1}),
        "state_dict": weights,
    }


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrap", [lambda s: s, lightning, lambda s: {"model": s, "n": 1}], ids=["bare", "pl", "model"])
def test_what_torch_saves_is_read(tmp_path: Path, zipped: bool, wrap: Any) -> None:
    # seen to fail with the offset left out of as_strided, and with the storage's size in bytes taken for its length
    torch.save(wrap(state()), tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    found, saved = tensors_of(tmp_path / "a.ckpt"), state()
    assert found.keys() == saved.keys()
    assert all(torch.equal(found[name], saved[name]) and found[name].dtype == saved[name].dtype for name in saved)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol(tmp_path: Path, protocol: int) -> None:
    torch.save(lightning(state()), tmp_path / "a.ckpt", pickle_protocol=protocol)
    assert tensors_of(tmp_path / "a.ckpt").keys() == state().keys()


def test_safetensors_are_read_and_nothing_else_under_their_name(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2, 3)}, tmp_path / "a.safetensors")
    assert torch.equal(tensors_of(tmp_path / "a.safetensors")["a"], torch.ones(2, 3))
    (tmp_path / "a.bin").write_bytes((tmp_path / "a.safetensors").read_bytes())
    assert torch.equal(tensors_of(tmp_path / "a.bin")["a"], torch.ones(2, 3))
    torch.save(state(), tmp_path / "b.safetensors")
    with pytest.raises(UserError, match="whole safetensors file"):
        tensors_of(tmp_path / "b.safetensors")


def test_the_moving_average_comes_first(tmp_path: Path) -> None:
    # as in LlamaGen's own loader
    torch.save({"model": {"a": torch.zeros(1)}, "ema": {"a": torch.ones(1)}}, tmp_path / "a.pt")
    assert tensors_of(tmp_path / "a.pt")["a"].item() == 1


class Call:
    """Pickles into a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


class BuildCall:
    """Pickles into an object whose state is made by a call."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return OrderedDict, (), {"x": self.call}


def hostile(marker: Path) -> dict[str, Any]:
    """Objects that make ``marker`` when they are unpickled, each in another way."""
    command, program = f"touch {marker}", f"open({str(marker)!r}, 'w').close()"
    inner = pickle.dumps(Call(os.system, command))
    buffer = io.BytesIO()
    torch.save(Call(os.system, command), buffer, _use_new_zipfile_serialization=False)
    return {
        "os.system": Call(os.system, command),
        "exec": Call(exec, program),
        "eval": Call(eval, program),
        "pickle in pickle": Call(pickle.loads, inner),
        "torch.load in pickle": Call(torch.storage._load_from_bytes, buffer.getvalue()),
        "getattr": Call(getattr, Path(marker), "touch"),
        "method": Call(Path.touch, Path(marker)),
        "in arguments": Call(list, (Call(exec, program),)),
        "in state": BuildCall(Call(exec, program)),
        "as a key": {"a": [{("k",): Call(exec, program)}]},
        "map": Call(next, Call(map, exec, [program])),
        "import": Call(getattr, Call(__import__, "os"), "system"),
    }


NAMES = list(hostile(Path("x")))
RUN = [name for name in NAMES if name not in ("getattr", "import")]  # the others name os.system, and do not run it


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["alone", "beside weights"])
@pytest.mark.parametrize("name", NAMES)
def test_hostile_pickles_end_in_one_line_and_nothing_has_run(
    tmp_path: Path, name: str, place: str, zipped: bool
) -> None:
    """Seen to fail with pickle.Unpickler in place of the machine (the marker was made), and with FORBIDDEN empty
    (nothing ran, but the weights beside the call were taken without a word)."""
    marker = tmp_path / "ran"
    payload = hostile(marker)[name]
    if name in RUN:  # it is dangerous indeed: Python's own unpickler runs it
        pickle.loads(pickle.dumps(payload))
        assert marker.exists()
        marker.unlink()
    path = tmp_path / "a.ckpt"
    whole = payload if place == "alone" else {"state_dict": state(), "callbacks": [payload]}
    torch.save(whole, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"tensors and plain data only .*it names .*nothing of it was run") as caught:
        tensors_of(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_calls_that_nobody_has_forbidden_are_not_made_either(tmp_path: Path) -> None:
    """Seen to fail with calls of unknown functions carried out."""
    marker = tmp_path / "ran"
    source = b"c" + b"distutils_of_somebody\nrun\n" + b"(" + f"V{marker}\n".encode() + b"tR."
    assert str(RestrictedUnpickler({}, {}).run(source)[0]) == "distutils_of_somebody.run"
    # numpy's runstring is exec under another name, and importing this module is what a real unpickler would do
    source = b"cnumpy.testing._private.utils\nrunstring\n(Vopen('" + str(marker).encode() + b"','w')\n}tR."
    assert str(RestrictedUnpickler({}, {}).run(source)[0]) == "numpy.testing._private.utils.runstring"
    assert not marker.exists()


@pytest.mark.parametrize(
    "names",
    [("os", "system"), ("glob", "os.system"), ("torch.nn", "os.system"), ("torch.nn", "functional.torch.hub.load"),
     ("torch", "load"), ("torch.hub", "load"), ("torch.storage", "_load_from_bytes"), ("builtins", "getattr"),
     ("__builtin__", "eval"), ("operator", "attrgetter"), ("torch.jit", "load"), ("torch.ops", "load_library"),
     ("torch.utils.cpp_extension", "load_inline")],
)  # fmt: skip
def test_names_that_are_refused(names: tuple[str, str]) -> None:
    module, name = names
    source = b"\x80\x04" + b"".join(b"\x8c" + bytes([len(s)]) + s.encode() for s in (module, name)) + b"\x93."
    with pytest.raises(UserError, match="it names"):
        RestrictedUnpickler({}, {}).run(source)


@pytest.mark.parametrize(("text", "read"), [(rb"a\d", "a\\d"), (rb"a\777", None), (rb"\x", None)])
def test_escapes_that_mean_nothing_are_no_warning(text: bytes, read: str | None) -> None:
    """pickletools decodes text of protocol 0 as Python source code. Seen to fail with a DeprecationWarning."""
    source = b"S'" + text + b"'\n."
    if read is None:
        with pytest.raises(UserError, match="a whole pickle"):
            RestrictedUnpickler({}, {}).run(source)
    else:
        assert RestrictedUnpickler({}, {}).run(source) == (read, len(source))


def rewritten(path: Path, change: Any, **options: Any) -> Path:
    """A copy of a torch zip with its entries changed: ``change(name, bytes)`` gives what is written, or None."""
    out = path.with_name("changed.ckpt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", **options) as new:
        for info in old.infolist():
            data = change(info.filename, old.read(info))
            if data is not None:
                new.writestr(info.filename, data)
    return out


def test_zips_that_lie_about_sizes(tmp_path: Path) -> None:
    # seen to fail without the check of each: compression, a missing storage, a storage that is too short, big-endian
    path = tmp_path / "a.ckpt"
    torch.save({"a": torch.ones(1000), "b": torch.zeros(7)}, path)
    keep = lambda name, data: data  # noqa: E731
    assert tensors_of(rewritten(path, keep)).keys() == {"a", "b"}
    with pytest.raises(UserError, match="compressed"):
        tensors_of(rewritten(path, keep, compression=zipfile.ZIP_DEFLATED))
    with pytest.raises(UserError, match="storage is missing"):
        tensors_of(rewritten(path, lambda name, data: None if name.endswith("data/0") else data))
    with pytest.raises(UserError, match="1000 numbers in 40 bytes"):
        tensors_of(rewritten(path, lambda name, data: data[:40] if name.endswith("data/0") else data))
    with pytest.raises(UserError, match="big-endian"):
        tensors_of(rewritten(path, lambda name, data: b"big" if name.endswith("byteorder") else data))
    with pytest.raises(UserError, match="0 data.pkl"):
        tensors_of(rewritten(path, lambda name, data: None if name.endswith("data.pkl") else data))
    with pytest.raises(UserError, match="far too large"):
        tensors_of(rewritten(path, lambda name, data: data + bytes(64 << 20) if name.endswith("data.pkl") else data))


def test_a_zip_bomb_takes_no_memory(tmp_path: Path) -> None:
    bomb = tmp_path / "a.ckpt"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a/data.pkl", "w") as file:
        for _ in range(300):
            file.write(bytes(1 << 20))
    assert bomb.stat().st_size < 1 << 20
    with pytest.raises(UserError, match=f"compressed.*{300 << 20} bytes"):
        tensors_of(bomb)


def absurd(size: tuple[Any, ...], stride: tuple[Any, ...], offset: Any = 0, numel: Any = 12) -> bytes:
    """A pickle of {"a": tensor} over storage 0 with any numbers in it."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if obj is pickle else None

    class Tensor:
        def __reduce__(self) -> tuple[Any, ...]:
            return torch._utils._rebuild_tensor_v2, (pickle, offset, size, stride, False, OrderedDict())

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({"a": Tensor()})
    return buffer.getvalue()


@pytest.mark.parametrize(
    "lie",
    [
        {"size": (3, 4), "stride": (4, 1), "numel": 1 << 50},
        {"size": (3, 4), "stride": (4, 1), "numel": -12},
        {"size": (3, 4), "stride": (4, 1), "numel": "12"},
        {"size": (3, 5), "stride": (4, 1)},
        {"size": (3, 4), "stride": (4, 1), "offset": 1},
        {"size": (3, 4), "stride": (4, 1), "offset": -4},
        {"size": (3, 4), "stride": (1 << 62, 1)},
        {"size": (3, 4), "stride": (-4, 1)},
        {"size": (1 << 20, 1 << 20), "stride": (0, 0)},  # an expanded view: 4 TiB out of 48 bytes
        {"size": (1 << 62, 1 << 62), "stride": (1, 1)},
        {"size": (3.0, 4), "stride": (4, 1)},
        {"size": (True, 4), "stride": (4, 1)},
        {"size": (3, 4), "stride": (4,)},
        {"size": [3, 4], "stride": (4, 1)},
        {"size": (1,) * 20, "stride": (1,) * 20},
    ],
)
def test_absurd_tensors_are_refused_when_the_file_is_opened(tmp_path: Path, lie: dict[str, Any]) -> None:
    """Seen to fail without the comparison of elements with the storage: the expanded view was let through."""
    path = tmp_path / "a.ckpt"
    torch.save({"a": torch.ones(3, 4)}, path)
    honest = rewritten(path, lambda n, d: absurd((3, 4), (4, 1)) if n.endswith("data.pkl") else d)
    assert torch.equal(tensors_of(honest)["a"], torch.ones(3, 4))
    with (
        pytest.raises(UserError),
        open_weights(rewritten(path, lambda n, d: absurd(**lie) if n.endswith("data.pkl") else d)),
    ):
        pytest.fail("it was opened")


@pytest.mark.parametrize(
    ("source", "match"),
    [
        (b"(" * 100_000 + b".", "deep"),
        (b"]" + b"\x94(h\x00" * 501 + b".", "deep"),
        (b"N0" * 1_000_001 + b".", "million"),
        (b"h\x05.", "whole pickle"),
        (b"(.", "whole pickle"),
        (b"N(.", "whole pickle"),
        (b"\x82\x01.", "EXT1"),
        (b"Pabc\n.", "PERSID"),
        (b"]0", "whole pickle"),
        (b"", "whole pickle"),
        (b"\xff.", "whole pickle"),
        (b"B\xff\xff\xff\x7fabc.", "whole pickle"),
        (b"I" + b"9" * 5000 + b"\n.", "whole pickle"),
    ],
)
def test_pickles_that_are_no_checkpoints(source: bytes, match: str) -> None:
    with pytest.raises(UserError, match=match):
        RestrictedUnpickler({}, {}).run(source)


DEEP = b")" + b"\x85" * 100_000  # ((((...),),),)
LAUGHS = b"]" + b"".join(b"\x94]\x94(h" + bytes([2 * k]) + b"h" + bytes([2 * k]) + b"e" for k in range(100))
"""[] in two places of a list, that in two places of the next, a hundred times: 2^100 if it were written out."""


@pytest.mark.parametrize("nested", [DEEP, LAUGHS], ids=["deep", "wide"])
@pytest.mark.parametrize(
    "source",
    [
        b"%b)R.",  # called
        b"cx\ny\n(%bl\x85R.",  # an argument
        b"%b\x8c\x01a\x93.",  # a module's name
        b"ctorch._utils\n_rebuild_tensor_v2\n(\x8c\x01sK\x00%b)\x89}tR.",  # a tensor's size
        b"%bQ.",  # a storage
        b"}%bNs.",  # a key
        b"ccollections\nOrderedDict\n%b\x85R.",
    ],
)
def test_nothing_nested_is_ever_written_out(source: bytes, nested: bytes) -> None:
    """Seen to fail (it never ended, or overflowed the stack) with the function's text kept for what a call gives."""
    machine = RestrictedUnpickler(dict(reader._BUILDERS), {}, reader._persistent(lambda *_: None))
    with contextlib.suppress(UserError):
        machine.run(b"\x80\x04" + source.replace(b"%b", nested))


def test_depth_without_marks_is_harmless() -> None:
    # tuples of one need no mark; nothing here recurses into them, not even to hash or to throw them away
    deep, _ = RestrictedUnpickler({}, {}).run(b")" + b"\x85" * 200_000 + b".")
    assert isinstance(deep, tuple)
    made, _ = RestrictedUnpickler({}, {}).run(b"})" + b"\x85" * 200_000 + b"Ns.")
    assert [str(key) for key in made] == ["tuple"]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_cut_and_changed_files_end_in_one_line(tmp_path: Path, zipped: bool) -> None:
    """No damage gives anything but tensors or a UserError.

    Seen to fail before errors of zipfile other than BadZipFile were caught: names that are no text, negative places.
    """
    path, broken = tmp_path / "a.ckpt", tmp_path / "b.ckpt"
    saved = {"state_dict": {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4).half()}, "epoch": 3}
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    whole, generator = path.read_bytes(), random.Random(0)
    refused = 0
    for trial in range(400):
        data = bytearray(whole)
        if trial % 4 == 0:
            del data[generator.randrange(len(data)) :]
        else:
            for _ in range(generator.choice([1, 1, 3])):
                data[generator.randrange(len(data))] = generator.randrange(256)
        broken.write_bytes(bytes(data))
        try:
            tensors_of(broken)
        except UserError:
            refused += 1
    assert refused > 200


def test_files_of_other_kinds(tmp_path: Path) -> None:
    for name, data in (("page.ckpt", b"<!DOCTYPE html><html>"), ("empty.ckpt", b""), ("p.pt", pickle.dumps({"a": 1}))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match="weights|pickle"):
            tensors_of(tmp_path / name)
    with pytest.raises(UserError, match=r"none\.ckpt.*not found"):
        tensors_of(tmp_path / "none.ckpt")
    torch.save({"epoch": 1, "state_dict": {}}, tmp_path / "no.ckpt")
    with pytest.raises(UserError, match="no state dict"):
        tensors_of(tmp_path / "no.ckpt")
    (tmp_path / "z.zip").write_bytes(b"PK\x03\x04" + struct.pack("<I", 9) * 9)
    with pytest.raises(UserError, match="whole weights file"):
        tensors_of(tmp_path / "z.zip")
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.writestr("model.ckpt", b"PK")
    with pytest.raises(UserError, match=r"unpack model\.ckpt"):
        tensors_of(tmp_path / "outer.zip")


def test_a_damaged_value_is_found_when_it_is_read(tmp_path: Path) -> None:
    torch.save({"a": torch.full((1000,), 7.0)}, tmp_path / "a.ckpt")
    data = bytearray((tmp_path / "a.ckpt").read_bytes())
    place = data.find(struct.pack("<f", 7.0) * 9)
    data[place + 100] ^= 1
    (tmp_path / "a.ckpt").write_bytes(bytes(data))
    with pytest.raises(UserError, match="must be whole"):
        tensors_of(tmp_path / "a.ckpt")


def test_reading_leaves_builtins_alone(tmp_path: Path) -> None:
    before = dict(vars(builtins))
    torch.save(lightning(state()), tmp_path / "a.ckpt")
    tensors_of(tmp_path / "a.ckpt")
    assert vars(builtins) == before
