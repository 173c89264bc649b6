"""Weights files, damaged by hypothesis: tensors or one `UserError`, and nothing in them is called."""

import io
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from ggm_image.tokenizers.checkpoints.reader import open_weights
from tests.faults.strategies import damaged, examples, numbers, tried, values


def called(*_: object) -> None:
    """Named in the pickles below; nobody may call it."""
    CALLS.append(1)


CALLS: list[int] = []


class Trap:
    def __reduce__(self) -> tuple[Any, ...]:
        return called, ("now",)


def checkpoints(folder: Path) -> list[bytes]:
    """What torch.save writes, new and old, with something in it that a pickle would call."""
    weights = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.int64)}
    content = {"state_dict": weights, "epoch": 3, "callbacks": {"x": [Trap(), (1, "two", None)]}}
    made = []
    for new in (True, False):
        torch.save(content, folder / "whole.pt", _use_new_zipfile_serialization=new)
        made.append((folder / "whole.pt").read_bytes())
    return made


@pytest.mark.filterwarnings("ignore:invalid escape sequence:DeprecationWarning")
@examples(60)
@given(data=st.data())
def test_any_checkpoint(folder: Path, data: st.DataObject) -> None:
    """Seen to fail with a machine that calls what is named, and with an empty stack let through."""
    new, old = checkpoints(folder)
    calls = [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        f"c{__name__}\ncalled\n(tR.".encode(),
        b"c__main__\nx\n(ibuiltins\neval\n.",
    ]
    whole = data.draw(st.sampled_from([new, old]))
    at = data.draw(st.integers(0, len(whole)))
    spliced = st.sampled_from(calls).map(lambda call: whole[:at] + call + whole[at:])
    spoilt = data.draw(st.one_of(damaged(whole), spliced, st.sampled_from([new, old, *map(pickle.dumps, ({}, 1))])))
    (folder / "spoilt.pt").write_bytes(spoilt)

    def read() -> None:
        with open_weights(folder / "spoilt.pt") as tensors:
            for tensor in tensors.values():
                assert tensor.read().shape == tensor.shape

    CALLS.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "system", called)
        patch.setattr("builtins.eval", called)
        tried(read)
    assert not CALLS


class Storage:
    """What torch's pickles name by a persistent id."""


class Stored:
    """Pickled as a tensor is."""

    def __init__(self, *sizes: Any) -> None:
        self.sizes = sizes

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, (Storage(), *self.sizes, False, None)


def old_checkpoint(tensors: Any, keys: Any, numel: int) -> bytes:
    """The layout of torch.save before 1.6, with one storage of float32."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: object) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", numel, None) if isinstance(value, Storage) else None

    file = io.BytesIO()
    for part in (0x1950A86A20F9469CFC6C, 1001, {}, tensors, keys):
        Pickler(file, 2).dump(part)
    return file.getvalue() + struct.pack("<q", numel) + bytes(4 * max(0, min(numel, 9)))


sizes = st.lists(st.one_of(st.integers(0, 3), st.sampled_from([-1, 1 << 62, 1 << 70, True, 1.0])), max_size=3)


@examples(200)
@given(
    size=sizes,
    stride=sizes,
    offset=st.one_of(st.just(0), numbers),
    keys=st.one_of(st.just(["0"]), values),
    numel=st.one_of(st.integers(0, 9), numbers.filter(lambda n: abs(n) < 1 << 63)),
)
@example(size=[0, 1 << 70], stride=[1, 1], offset=0, keys=["0"], numel=1)
@example(size=[1], stride=[1 << 70], offset=0, keys=["0"], numel=1)
@example(size=[1], stride=[1], offset=0, keys=[["0"]], numel=1)
@example(size=[3], stride=[0], offset=0, keys=["0"], numel=1)
def test_any_sizes_of_a_stored_tensor(
    folder: Path, size: list[Any], stride: list[Any], offset: int, keys: Any, numel: int
) -> None:
    """Seen to fail with sizes beyond 63 bits, and with storage keys that are no text."""
    stride += [1] * (len(size) - len(stride))
    stored = Stored(offset, tuple(size), tuple(stride[: len(size)]))
    (folder / "sizes.pt").write_bytes(old_checkpoint({"a": stored}, keys, numel))

    def read() -> None:
        with open_weights(folder / "sizes.pt") as tensors:
            value = tensors["a"].read()
            assert value.shape == tensors["a"].shape == tuple(size)
            assert value.numel() <= max(numel, 0)

    tried(read)
