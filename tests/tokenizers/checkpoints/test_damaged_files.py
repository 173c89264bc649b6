"""Weights files that are damaged, or that lie about their sizes: tensors or one `UserError`."""

import io
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from ggm_image.errors import UserError
from ggm_image.tokenizers.checkpoints.reader import open_weights
from tests.tokenizers.checkpoints.reading import tensors_of


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
