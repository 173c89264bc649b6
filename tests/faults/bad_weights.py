"""safetensors: headers and values of weights, of shards of tokens, and what the manifest says of these."""

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.faults.bad_configs import VALUES, changed
from tests.faults.bad_sources import copied
from tests.faults.corpus import DONE, EITHER, REFUSED, Case, World

Header = dict[str, Any]


def cases(world: World) -> dict[str, list[Case]]:
    return {"weights": list(_weights(world)), "shards": list(_shards(world)), "manifests": list(_manifests(world))}


def split(data: bytes) -> tuple[Header, bytes]:
    """Header and body of a safetensors file."""
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: object, body: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def spoilt(data: bytes) -> dict[str, bytes]:
    """A safetensors file, spoilt in many ways; its first tensor is of 4-byte floats or of tokens."""
    header, body = split(data)
    name, other = [key for key in header if key != "__metadata__"][:2]
    entry = header[name]
    first, _ = entry["data_offsets"]

    def with_values(value: float) -> bytes:
        made = bytearray(body)
        made[first : first + 4] = struct.pack("<f", value)
        return joined(header, bytes(made))

    text = json.dumps(header).encode()
    return {
        "of no bytes": b"",
        "of 7 bytes": data[:7],
        "of its length alone": data[:8],
        "cut in its header": data[:60],
        "cut at its body": data[: len(data) - len(body)],
        "cut by a byte": data[:-1],
        "cut halfway": data[: len(data) // 2],
        "with more behind it": data + b"x",
        "with a length of 0": joined(text, body, 0),
        "with a length of 1": joined(text, body, 1),
        "with a length beyond the file": joined(text, body, len(data) + 100),
        "with a length of 2^63": joined(text, body, 1 << 63),
        "with a length of 2^64 - 1": joined(text, body, (1 << 64) - 1),
        "with a length of 200 MB": joined(text, body, 200_000_000),
        "whose header is no JSON": joined(b"{" + b"x" * 100, body),
        "whose header is no UTF-8": joined(b'{"\xff": 1}', body),
        "whose header is a list": joined([1, 2], body),
        "whose header is null": joined(None, body),
        "whose header is empty": joined({}, body),
        "whose header is 100,000 brackets": joined(b"[" * 100_000, body),
        "whose header nests 100,000 deep": joined(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, body),
        "whose header has a number of 5,000 digits": joined(b'{"a": ' + b"9" * 5000 + b"}", body),
        "whose header has a name twice": joined(text[:-1] + b"," + text[1:], body),
        "whose header holds NaN": joined(b'{"a": NaN}', body),
        "without a tensor": joined({k: v for k, v in header.items() if k != name}, body),
        "without its last tensor's bytes": joined({k: v for k, v in header.items() if k != other}, body),
        "with a tensor more": joined({**header, "zzz": {**entry, "shape": [0], "data_offsets": [0, 0]}}, body),
        "with another name": joined({("x" if k == name else k): v for k, v in header.items()}, body),
        "with an escape sequence for a name": joined(
            {("\x1b[31m\n" if k == name else k): v for k, v in header.items()}, body
        ),
        "with a name of 100,000 letters": joined(
            {("x" * 100_000 if k == name else k): v for k, v in header.items()}, body
        ),
        "with NaN": with_values(math.nan),
        "with infinity": with_values(-math.inf),
        "with a changed bit": data[:-1] + bytes([data[-1] ^ 1]),
        "that is a zip": b"PK\x03\x04" + bytes(600),
        "that is a pickle": b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R.",
        "that is text": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        **_spoilt_entries(header, body, name, other),
    }


def _spoilt_entries(header: dict[str, Any], body: bytes, name: str, other: str) -> dict[str, bytes]:
    """The file with another entry for its first tensor."""
    entry = header[name]
    shape, (first, last) = entry["shape"], entry["data_offsets"]

    def with_entry(**more: Any) -> bytes:
        return joined({**header, name: {**entry, **more}}, body)

    return {
        "with an entry that is null": joined({**header, name: None}, body),
        "with an entry that is a list": joined({**header, name: [1]}, body),
        "with metadata in a list": joined({**header, "__metadata__": [1]}, body),
        "with numbers for metadata": joined({**header, "__metadata__": {"a": 1}}, body),
        "of an unknown type": with_entry(dtype="X7"),
        "of a type that is a number": with_entry(dtype=5),
        "of integers": with_entry(dtype="I32"),
        "of half numbers": with_entry(dtype="F16"),
        "of truth values": with_entry(dtype="BOOL"),
        "of bytes": with_entry(dtype="U8"),
        "of 8-bit floats": with_entry(dtype="F8_E4M3"),
        "of another shape": with_entry(shape=[math.prod(shape)]),
        "turned round": with_entry(shape=shape[::-1]),
        "of no shape": with_entry(shape=[]),
        "of a shape with zero": with_entry(shape=[0, *shape]),
        "of a negative shape": with_entry(shape=[-1, *shape[1:]]),
        "of a broken shape": with_entry(shape=[1.5, *shape[1:]]),
        "of a shape in letters": with_entry(shape="abc"),
        "of a shape of 2^62": with_entry(shape=[2**62, 2**62]),
        "of a shape of 10^30": with_entry(shape=[10**30]),
        "with an offset too few": with_entry(data_offsets=[first]),
        "with offsets that are null": with_entry(data_offsets=None),
        "with offsets in letters": with_entry(data_offsets=["a", "b"]),
        "with broken offsets": with_entry(data_offsets=[first + 0.5, last + 0.5]),
        "with negative offsets": with_entry(data_offsets=[-4, last - first - 4]),
        "with offsets turned round": with_entry(data_offsets=[last, first]),
        "with offsets beyond the file": with_entry(data_offsets=[first + len(body), last + len(body)]),
        "with offsets of 2^63": with_entry(data_offsets=[2**63, 2**63 + last - first]),
        "with offsets of another tensor": with_entry(data_offsets=header[other]["data_offsets"]),
        "with offsets a byte on": with_entry(data_offsets=[first + 1, last + 1]),
    }


def _weights(w: World) -> Iterator[Case]:
    for what, data in spoilt((w.root / "model/model.safetensors").read_bytes()).items():
        yield Case(
            f"a model's weights {what}",
            lambda f, d=data: w.sample(  # type: ignore[misc]
                f / "out.png", model=copied(w.root / "model", f / "model", "model.safetensors", lambda p: _write(p, d))
            ),
        )
    config = (w.root / "tokenizer/config.yaml").read_text()
    for what, data in spoilt((w.root / "tokenizer/model.safetensors").read_bytes()).items():

        def tokenizer(f: Path, data: bytes = data) -> Path:
            """With the hash that its config names, so that it is opened."""
            (f / "own").mkdir()
            _write(f / "own/model.safetensors", data)
            text = config[: config.index("sha256: ")] + f"sha256: {hashlib.sha256(data).hexdigest()}\n"
            (f / "own/config.yaml").write_text(text)
            return f / "own"

        yield Case(
            f"a tokenizer's weights {what}",
            lambda f, t=tokenizer: w.encode(w.root / "pictures", f / "out", tokenizer=t(f)),  # type: ignore[misc]
        )
        yield Case(
            f"somebody's weights {what}",
            lambda f, d=data: ["convert", str(_write(f / "a.safetensors", d)), str(f / "out")],  # type: ignore[misc]
        )


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _cache(w: World, f: Path, *, manifest: object = None, shard: bytes | None = None) -> Path:
    """The token cache with another manifest (value, text or bytes), or another first shard whose hash is right."""
    table = json.loads((w.root / "tokens/manifest.json").read_text())
    name = "tokens-00000.safetensors"
    cache = copied(w.root / "tokens", f / "tokens", "manifest.json", lambda p: None)
    if shard is not None:
        (cache / name).unlink()
        _write(cache / name, shard)
        table["shards"][0]["sha256"] = hashlib.sha256(shard).hexdigest()
    content = table if manifest is None else manifest
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    _write(cache / "manifest.json", text)
    return cache


def _uses(w: World) -> dict[str, Callable[[Path, Path], list[str]]]:
    return {
        "decode": lambda cache, f: w.decode(cache, f / "out"),
        "train": lambda cache, f: w.train(f / "run", data=cache),
        "fid": lambda cache, f: w.fid(cache),
        "encode": lambda cache, f: w.encode(w.root / "pictures", cache, "--shard-size", "5"),
    }


def _shards(w: World) -> Iterator[Case]:
    data = (w.root / "tokens/tokens-00000.safetensors").read_bytes()
    header, body = split(data)
    wrong = spoilt(data)
    for name, value in {"32": 32, "65,535": 65535}.items():
        wrong[f"with a token of {name}"] = joined(header, _with(header, body, "tokens", value, "<u2"))
    for name, value in {"-2": -2, "3": 3, "2^31 - 1": 2**31 - 1, "-2^31": -(2**31)}.items():
        wrong[f"with a label of {name}"] = joined(header, _with(header, body, "labels", value, "<i4"))
    uses = _uses(w)
    for what, spoilt_data in wrong.items():
        for use in ("decode", "train", "fid"):
            yield Case(
                f"{use}: a shard {what}",
                lambda f, u=use, d=spoilt_data: uses[u](_cache(w, f, shard=d), f),  # type: ignore[misc]
                REFUSED if "cut" in what or "with a token" in what or "is null" in what else EITHER,
            )


def _with(header: Header, body: bytes, name: str, value: int, kind: str) -> bytes:
    made, start = bytearray(body), header[name]["data_offsets"][0]
    number = np.array([value]).astype(kind).tobytes()
    made[start : start + len(number)] = number
    return bytes(made)


HOSTILE_NAMES = (
    "", ".", "..", "/", "../tokens/tokens-00001.safetensors", "/etc/passwd", "manifest.json", "a\nb", "\x1b[31m",
    "a" * 300, "tokens-00001.safetensors", "tokens-00000.safetensors/", "./tokens-00000.safetensors", "a\0b", "\ud800",
)  # fmt: skip


def _manifests(w: World) -> Iterator[Case]:
    uses = _uses(w)

    def case(what: str, content: object, use: str, allowed: frozenset[int] = EITHER) -> Case:
        return Case(f"{use}: a manifest {what}", lambda f: uses[use](_cache(w, f, manifest=content), f), allowed)

    table = json.loads((w.root / "tokens/manifest.json").read_text())
    for use in uses:
        yield case("as it is", table, use, DONE)
        for what, text in {
            "of no bytes": b"", "that is a list": b"[]", "that is null": b"null", "that is a word": b'"a"',
            "cut halfway": json.dumps(table).encode()[:300], "that is no UTF-8": b'{"a": "\xff"}',
            "of 100,000 brackets": b"[" * 100_000, "with a number of 5,000 digits": b'{"count": ' + b"9" * 5000 + b"}",
            "with a byte order mark": b"\xef\xbb\xbf" + json.dumps(table).encode(),
            "that is empty": b"{}", "that is a YAML": b"count: 1\n",
        }.items():  # fmt: skip
            yield case(what, text, use, REFUSED if use in ("decode", "train") else EITHER)
    odd = [pair for pair in VALUES.items() if pair[0] not in ("a date",)]
    for number, name in enumerate(table):
        for use in ("decode", "train"):
            yield case(f"without {name}", changed(table, (name,), ...), use)
        for k, (what, value) in enumerate(odd):
            use = list(uses)[(number + k) % 4]
            yield case(f"with {name} set to {what}", changed(table, (name,), value), use)
    shard = table["shards"][0]
    for number, name in enumerate(shard):
        yield case(f"with a shard without {name}", _with_shard(table, changed(shard, (name,), ...)), "decode")
        for k, (what, value) in enumerate(odd):
            use = list(uses)[(number + k) % 4]
            yield case(f"whose shard has {name} set to {what}", _with_shard(table, changed(shard, (name,), value)), use)
    for name in HOSTILE_NAMES:
        for use in ("decode", "train", "encode"):
            yield case(f"with a shard called {name[:20]!r}", _with_shard(table, {**shard, "file": name}), use)
        yield case(f"with a class called {name[:20]!r}", {**table, "class_names": [name, "b", "c"]}, "decode")
    for what, skipped in {
        "no item": [{"name": "a", "why": "b"}], "an item of -1": [{"item": -1, "name": "a", "why": "b"}],
        "an item of 10^18": [{"item": 10**18, "name": "a", "why": "b"}], "a number": [5],
        "an item in letters": [{"item": "x", "name": "a", "why": "b"}], "a table": {"a": 1},
    }.items():  # fmt: skip
        for use in ("train", "decode", "encode"):
            yield case(f"whose shard skipped {what}", _with_shard(table, {**shard, "skipped": skipped}), use)
    for what, value in {
        "grid of one number": [4], "grid of three": [4, 4, 4], "grid in letters": ["a", "b"], "grid of zero": [0, 0],
        "negative grid": [-4, -4], "grid of 10^9": [10**9, 10**9], "broken grid": [4.5, 4.5],
    }.items():  # fmt: skip
        for use in ("decode", "train"):
            yield case(f"with a {what}", {**table, "grid": value}, use)
    for what, value in {"a class twice": ["a", "a", "b"], "a class too few": ["a"], "numbers": [1, 2, 3]}.items():
        for use in ("decode", "train", "fid"):
            yield case(f"with {what} in class_names", {**table, "class_names": value}, use)


def _with_shard(table: dict[str, Any], shard: dict[str, Any]) -> dict[str, Any]:
    return {**table, "shards": [shard, *table["shards"][1:]]}
