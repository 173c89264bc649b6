"""Weights files of others: read as they were saved, and refused when they are hostile."""

import argparse
import builtins
import collections
import io
import os
import pathlib
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from ggm_image.errors import UserError
from tests.tokenizers.checkpoints.reading import tensors_of


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


def test_reading_leaves_builtins_alone(tmp_path: Path) -> None:
    before = dict(vars(builtins))
    torch.save(lightning(state()), tmp_path / "a.ckpt")
    tensors_of(tmp_path / "a.ckpt")
    assert vars(builtins) == before
