"""Saved features and their networks, checkpoints to be converted, logs to be drawn."""

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.faults.bad_configs import VALUES, changed
from tests.faults.bad_sources import copied
from tests.faults.corpus import EITHER, REFUSED, Case, World


def cases(world: World) -> dict[str, list[Case]]:
    return {
        "features": [*_saved(world), *_networks(world)],
        "conversions": list(_conversions(world)),
        "logs": list(_logs(world)),
    }


def _write(path: Path, data: bytes | str) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def _paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, inner in value.items():
        yield (*at, key)
        if isinstance(inner, dict):
            yield from _paths(inner, (*at, key))


def _saved(w: World) -> Iterator[Case]:
    place = next((w.root / "saved").glob("*/features.json")).parent
    table = json.loads((place / "features.json").read_text())
    rows = next(path for path in place.iterdir() if path.suffix != ".json")
    data = rows.read_bytes()

    def record(f: Path, content: object) -> list[str]:
        text = content if isinstance(content, bytes) else json.dumps(content).encode()
        return w.fid(copied(place, f / "saved", "features.json", lambda p: _write(p, text)))

    for what, content in {
        "of no bytes": b"", "that is a list": b"[]", "that is null": b"null", "of 100,000 brackets": b"[" * 100_000,
        "cut halfway": json.dumps(table).encode()[:200], "that is empty": b"{}", "that is no UTF-8": b'"\xff"',
    }.items():  # fmt: skip
        yield Case(f"a record of features {what}", lambda f, c=content: record(f, c), REFUSED)  # type: ignore[misc]
    odd = [pair for pair in VALUES.items() if pair[0] != "a date"]
    for number, at in enumerate(_paths(table)):
        name = ".".join(map(str, at))
        yield Case(f"a record of features without {name}", lambda f, a=at: record(f, changed(table, a, ...)))  # type: ignore[misc]
        for k in range(3):
            what, value = odd[(3 * number + k) % len(odd)]
            yield Case(
                f"a record of features with {name} set to {what}",
                lambda f, a=at, v=value: record(f, changed(table, a, v)),  # type: ignore[misc]
            )
    for what, wrong in {
        "of no bytes": b"", "cut in their header": data[:20], "cut halfway": data[: len(data) // 2],
        "cut by a byte": data[:-1], "with more behind them": data + b"x", "with a changed bit": _flipped(data),
        "that are text": b"text", "of zeros": bytes(len(data)),
    }.items():  # fmt: skip
        yield Case(
            f"rows of features {what}",
            lambda f, d=wrong: w.fid(copied(place, f / "saved", rows.name, lambda p: _write(p, d))),  # type: ignore[misc]
            EITHER if what == "with more behind them" else REFUSED,
        )
    yield Case("no rows of features", lambda f: w.fid(copied(place, f / "saved", rows.name, lambda p: None)), REFUSED)
    for what, text in {"damaged": b"{", "nested": b"[" * 100_000, "of another kind": b'{"format_version": 1}'}.items():

        def again(f: Path, text: bytes = text) -> list[str]:
            """Features that are found again, and are not whole."""
            shutil.copytree(w.root / "saved", f / "saved")
            for path in (f / "saved").glob("*/features.json"):
                _write(path, text)
            return w.fid(w.root / "pictures", "--statistics", str(f / "saved"))

        yield Case(f"kept features whose record is {what}", again)


def _flipped(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 64]) + data[-8:]


class Whole(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


class One(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float().mean()


class Nan(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float().flatten(2).mean(2) * float("nan")


class Narrow(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float().flatten(2).mean(2)[:, :0]


class Short(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float().flatten(2).mean(2)[:1]


class Raising(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[0] > 1000, "too few"
        return x.float()


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.float(), x.float()


def _networks(w: World) -> Iterator[Case]:
    for what, network in {
        "gives its input": Whole(), "gives one number": One(), "gives NaN": Nan(), "gives nothing": Narrow(),
        "gives a row for all": Short(), "always fails": Raising(), "gives a pair": Pair(),
    }.items():  # fmt: skip

        def make(f: Path, network: nn.Module = network) -> list[str]:
            import warnings

            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.jit.script(network).save(str(f / "a.pt"))
            return w.fid(w.root / "pictures", features=f / "a.pt")

        yield Case(f"a network that {what}", make, REFUSED)
    good = (w.root / "means.pt").read_bytes()
    for what, data in {
        "of no bytes": b"",
        "that is text": b"text",
        "cut halfway": good[: len(good) // 2],
        "cut at its end": good[:-30],
        "that is a pickle": pickle.dumps({"a": 1}),
        "with a changed byte": good[:200] + b"\xff" + good[201:],
        "that is a zip of nothing": b"PK\x05\x06" + bytes(18),
    }.items():
        yield Case(
            f"a network in a file {what}",
            lambda f, d=data: w.fid(w.root / "pictures", features=_write(f / "a.pt", d)),  # type: ignore[misc]
            REFUSED if what != "with a changed byte" else EITHER,
        )
        yield Case(
            f"Inception in a file {what}",
            lambda f, d=data: w.fid(  # type: ignore[misc]
                w.root / "pictures", "--weights", str(_write(f / "inception-2015-12-05.pt", d)), features="inception"
            ),
            REFUSED,
        )


def _conversions(w: World) -> Iterator[Case]:
    for suffix in ("ckpt", "safetensors"):
        for what, data in {
            "no bytes": b"",
            "a text": b"text",
            "zeros": bytes(1000),
            "a zip of nothing": b"PK\x05\x06" + bytes(18),
            "a gzip": b"\x1f\x8b" + bytes(99),
            "a pickled number": pickle.dumps(5),
            "a pickled list": pickle.dumps([1]),
            "a program": b"\x7fELF" + bytes(600),
            "an image": (w.root / "picture.png").read_bytes(),
            "JSON": b"{}",
            "a pickle of 5,000 marks": b"\x80\x02" + b"(" * 5000 + b".",
            "a pickle that never ends": b"\x80\x02" + b"N0" * 9,
            "a TorchScript program": (w.root / "means.pt").read_bytes(),
        }.items():
            yield Case(
                f"a .{suffix} that is {what}",
                lambda f, s=suffix, d=data: ["convert", str(_write(f / f"a.{s}", d)), str(f / "out")],  # type: ignore[misc]
                REFUSED,
            )
    yield from _config_jsons(w)
    yield from _other_conversions(w)


def _config_jsons(w: World) -> Iterator[Case]:
    weights = w.root / "tokenizer/model.safetensors"
    good = {"_class_name": "VQModel", "in_channels": 3, "out_channels": 3, "block_out_channels": [32], "act_fn": "silu",
            "down_block_types": ["DownEncoderBlock2D"], "up_block_types": ["UpDecoderBlock2D"], "latent_channels": 4,
            "layers_per_block": 1, "num_vq_embeddings": 32, "norm_num_groups": 32, "sample_size": 16}  # fmt: skip
    texts: dict[str, object] = {
        "of no bytes": b"",
        "that is a list": [],
        "of 100,000 brackets": b"[" * 100_000,
        "of two megabytes": b" " * (2 << 20),
        "that is no UTF-8": b'{"a": "\xff"}',
        "of another class": {"_class_name": "UNet2DModel"},
        "of a class that is a list": {"_class_name": []},
        "of MaskGIT without sizes": {"_class_name": "MaskGitVQGAN"},
        "as published": good,
        "with a number of 5,000 digits": b'{"a": ' + b"9" * 5000 + b"}",
    }
    for number, name in enumerate(good):
        texts[f"without {name}"] = {k: v for k, v in good.items() if k != name}
        for k in range(3):
            what, value = [pair for pair in VALUES.items() if pair[0] != "a date"][(3 * number + k) % (len(VALUES) - 1)]
            texts[f"with {name} set to {what}"] = {**good, name: value}
    for what, content in texts.items():

        def folder(f: Path, content: object = content) -> list[str]:
            (f / "in").mkdir()
            text = content if isinstance(content, bytes) else json.dumps(content).encode()
            _write(f / "in/config.json", text)
            shutil.copy(weights, f / "in/diffusion_pytorch_model.safetensors")
            return ["convert", str(f / "in"), str(f / "out")]

        yield Case(f"a config.json {what}", folder, REFUSED)


def _other_conversions(w: World) -> Iterator[Case]:
    out = "out"

    def two(f: Path) -> list[str]:
        (f / "in").mkdir()
        for name in ("a.ckpt", "b.ckpt"):
            _write(f / "in" / name, b"x")
        return ["convert", str(f / "in"), str(f / out)]

    own, path = str(w.root / "tokenizer"), str(w.root / "tokenizer/model.safetensors")
    more: dict[str, Callable[[Path], list[str]]] = {
        "of two checkpoints in a folder": two,
        "of an empty folder": lambda f: ["convert", str((f / "in").mkdir() or f / "in"), str(f / out)],
        "like a tokenizer that is unknown": lambda f: ["convert", path, str(f / out), "--like", "x"],
        "like a tokenizer of another kind": lambda f: ["convert", path, str(f / out), "--like", "cifar10-f4-4096"],
        "like itself": lambda f: ["convert", own, str(f / out), "--like", own],
        "of pixels in a file": lambda f: ["convert", path, str(f / out), "--pixels", "0..1"],
        "of unknown pixels": lambda f: ["convert", path, str(f / out), "--pixels", "0..2"],
        "into itself": lambda f: ["convert", own, own],
        "under an empty name": lambda f: ["convert", own, str(f / out), "--name", ""],
        "under a hostile name": lambda f: ["convert", own, str(f / out), "--name", "../x\n\x1b[31m"],
        "under a name of 10,000 letters": lambda f: ["convert", own, str(f / out), "--name", "x" * 10_000],
        "of an address": lambda f: ["convert", "https://example.org/a.ckpt", str(f / out)],
    }
    for what, make in more.items():
        yield Case(f"a conversion {what}", make)


def _logs(w: World) -> Iterator[Case]:
    good = (w.root / "run/log.csv").read_bytes()
    for what, data in {
        "as it is": good,
        "of no bytes": b"",
        "of its header alone": good.splitlines()[0] + b"\n",
        "without a line break": good.rstrip(b"\n"),
        "cut in a row": good[:-20],
        "with a row too long": good + b"2,1,1" + b",1" * 99,
        "with a row too short": good + b"2",
        "with zeros in it": good + b"\0\0\n",
        "that is no UTF-8": good + b"2,\xff\n",
        "that is UTF-16": good.decode().encode("utf-16"),
        "that is binary": bytes(range(256)) * 8,
        "without steps": b"a,b\n1,2\n",
        "with steps in letters": b"step,loss\nx,1\n",
        "with steps of 0.5": b"step,loss\n0.5,1\n",
        "with negative steps": b"step,loss\n-5,1\n",
        "with steps of 400 digits": b"step,loss\n" + b"9" * 400 + b",1\n",
        "with steps of 5,000 digits": b"step,loss\n" + b"9" * 5000 + b",1\n",
        "with NaN": b"step,loss\n1,nan\n2,nan\n",
        "with infinity": b"step,loss\n1,inf\n2,1\n",
        "with 1e308 and -1e308": b"step,loss\n1,1e308\n2,-1e308\n",
        "with a word": b"step,loss\n1,good\n",
        "with a column twice": b"step,loss,loss\n1,2,3\n",
        "with a column of no name": b"step,\n1,2\n",
        "with a thousand columns": b"step,"
        + b",".join(b"c%d" % k for k in range(60))
        + b"\n1,"
        + b",".join(b"1" for _ in range(60))
        + b"\n",
        "with a field of 200,000 letters": b"step,loss\n1," + b"1" * 200_000 + b"\n",
        "with an open quote": b'step,loss\n1,"2\n',
        "with mathematics": b"step,$\\frac{$\n1,2\n",
        "with an underscore alone": b"step,_a\n1,2\n",
        "with carriage returns": b"step,loss\r1,2\r",
        "with steps that go back": b"step,loss\n5,1\n3,1\n5,2\n",
        "with 30 rows of NaN": b"step,loss\n" + b"1,nan\n" * 30,
    }.items():

        def make(f: Path, data: bytes = data) -> list[str]:
            (f / "run").mkdir()
            _write(f / "run/log.csv", data)
            return ["plot", str(f / "run")]

        yield Case(f"a log {what}", make)
    yield Case("a run that is not there", lambda f: ["plot", str(f / "run")], REFUSED)
    yield Case("curves that are no .png", lambda f: ["plot", w.path("run"), "--out", str(f / "a.jpg")], REFUSED)
