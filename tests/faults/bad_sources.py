"""Names, files that are no files, folders and archives."""

import gzip
import io
import lzma
import os
import socket
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults.bad_pictures import saved
from tests.faults.corpus import DONE, EITHER, REFUSED, Case, World

PNG = saved("RGB", "PNG")
NAMES = {
    "a line break": "a\nerror: b",
    "a tab": "a\tb",
    "an escape sequence": "a\x1b[31mb",
    "a carriage return": "a\rb",
    "spaces at both ends": " a ",
    "quotes": "a'\"b",
    "a percent sign": "a%sb{0}",
    "a dollar": "a${oc.env:HOME}b",
    "an accent": "é",
    "an image sign": "🐱",
    "text that turns round": "a\u202egnp.exe",
    "bytes that are no UTF-8": os.fsdecode(b"a\xff\xfeb"),
    "200 letters": "a" * 200,
    "a leading minus": "-a",
    "a star": "a*?[b]",
}


def _write(path: Path, data: bytes = PNG) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def cases(world: World) -> dict[str, list[Case]]:
    return {
        "names": list(_names(world)),
        "special files": list(_special(world)),
        "folders": list(_folders(world)),
        "tars": list(_tars(world)),
    }


def _names(w: World) -> Iterator[Case]:
    for what, name in NAMES.items():
        uses: dict[str, Callable[[Path, str], list[str]]] = {
            "an image": lambda f, n: w.encode(_write(f / f"in/{n}.png").parent, f / "out"),
            "an image that is none": lambda f, n: w.encode(_write(f / f"in/{n}.png", b"x").parent, f / "out"),
            "such an image, left out": lambda f, n: w.encode(
                _write(_write(f / f"in/{n}.png", b"x").with_name("b.png")).parent, f / "out", "--skip-bad", "--json"
            ),
            "a class": lambda f, n: w.encode(_write(f / f"in/{n}/a.png").parents[1], f / "out", "--report"),
            "a source": lambda f, n: w.encode(_write(f / n / "a.png").parent, f / "out"),
            "a source that is not there": lambda f, n: w.encode(f / n, f / "out"),
            "a token cache to be made": lambda f, n: w.encode(w.root / "pictures", f / n),
            "a folder to be drawn into": lambda f, n: w.sample(f / n, "--json"),
            "an image to be drawn": lambda f, n: w.sample(f / f"{n}.png"),
            "a run": lambda f, n: w.train(f / n),
            "an image to be painted": lambda f, n: w.inpaint(f / "out", image=_write(f / f"{n}.png")),
            "an image in a figure": lambda f, n: w.fid(_write(f / f"in/{n}.png", b"x").parent),
            "a class in a figure": lambda f, n: w.fid(
                _write(_write(f / f"in/{n}/0.png").with_name("1.png")).parents[1], "--json"
            ),
            "a model": lambda f, n: w.sample(f / "out.png", model=f / n),
            "a class that is asked for": lambda f, n: w.sample(f / "out.png", "--class", n),
        }
        for use, make in uses.items():
            yield Case(f"{what} in the name of {use}", lambda f, make=make, name=name: make(f, name))  # type: ignore[misc]


def _folder(path: Path) -> None:
    path.mkdir()


def _socket(path: Path) -> None:
    here = os.open(path.parent, os.O_RDONLY)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


KINDS: dict[str, Callable[[Path], None]] = {
    "a folder": _folder,
    "a pipe": os.mkfifo,
    "a socket": _socket,
    "a link to endless zeros": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to("/dev/null"),
    "a link to what is not there": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to the folder above": lambda path: path.symlink_to(".."),
    "a file that nobody may read": lambda path: (path.write_bytes(PNG), path.chmod(0))[1],
}


def copied(source: Path, target: Path, but: str, make: Callable[[Path], None]) -> Path:
    """A folder's files linked into another one, but for one, which ``make`` makes."""
    for file in source.rglob("*"):
        if file.is_file() and file.relative_to(source).as_posix() != but:
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, place)
    (target / but).parent.mkdir(parents=True, exist_ok=True)
    make(target / but)
    return target


def _special(w: World) -> Iterator[Case]:
    for what, make in KINDS.items():

        def put(path: Path, make: Callable[[Path], None] = make) -> Path:
            path.parent.mkdir(parents=True, exist_ok=True)
            make(path)
            return path

        def spoilt(f: Path, name: str, file: str, make: Callable[[Path], None] = make) -> Path:
            return copied(w.root / name, f / name, file, make)

        places: dict[str, Callable[[Path], list[str]]] = {
            "an image of a source": lambda f, put=put: w.encode(
                put(_write(f / "in/b.png").with_name("a.png")).parent, f / "out"
            ),
            "an image to be left out": lambda f, put=put: w.encode(
                put(_write(f / "in/b.png").with_name("a.png")).parent, f / "out", "--skip-bad"
            ),
            "an image to train on": lambda f, put=put: w.train_tokenizer(
                f / "run", data=put(_write(f / "in/b.png").with_name("a.png")).parent
            ),
            "an image in a figure": lambda f, put=put: w.fid(put(_write(f / "in/b.png").with_name("a.png")).parent),
            "a source of images": lambda f, put=put: w.encode(put(f / "in.png"), f / "out"),
            "an archive": lambda f, put=put: w.encode(put(f / "in.tar"), f / "out"),
            "a shard of archives": lambda f, put=put: w.encode(put(f / "in/a.tar").parent, f / "out"),
            "an image to be judged": lambda f, put=put: w.signal(put(f / "a.png"), f / "out.png"),
            "a mask": lambda f, put=put: w.inpaint(f / "out.png", mask=put(f / "a.png")),
            "a config": lambda f, put=put: w.train(f / "run", config=put(f / "c.yaml")),
            "a tokenizer's config": lambda f, put=put: w.train_tokenizer(f / "run", config=put(f / "c.yaml")),
            "tokens": lambda f, put=put: w.train(f / "run", data=put(f / "tokens")),
            "a manifest": lambda f, s=spoilt: w.decode(s(f, "tokens", "manifest.json"), f / "out"),
            "a shard": lambda f, s=spoilt: w.decode(s(f, "tokens", "tokens-00000.safetensors"), f / "out"),
            "a shard to train on": lambda f, s=spoilt: w.train(
                f / "run", data=s(f, "tokens", "tokens-00000.safetensors")
            ),
            "a model's config": lambda f, s=spoilt: w.sample(f / "out.png", model=s(f, "model", "config.yaml")),
            "a model's weights": lambda f, s=spoilt: w.sample(f / "out.png", model=s(f, "model", "model.safetensors")),
            "a tokenizer's own config": lambda f, s=spoilt: [
                "convert",
                str(s(f, "tokenizer", "config.yaml")),
                str(f / "out"),
            ],
            "a tokenizer's weights": lambda f, s=spoilt: w.encode(
                w.root / "pictures", f / "out", tokenizer=s(f, "tokenizer", "model.safetensors")
            ),
            "a network of features": lambda f, put=put: w.fid(w.root / "pictures", features=put(f / "a.pt")),
            "weights of features": lambda f, put=put: w.fid(
                w.root / "pictures", "--weights", str(put(f / "inception-2015-12-05.pt")), features="inception"
            ),
            "a checkpoint": lambda f, put=put: ["convert", str(put(f / "a.ckpt")), str(f / "out")],
            "a checkpoint in a folder": lambda f, put=put: [
                "convert",
                str(put(f / "in/a.ckpt").parent),
                str(f / "out"),
            ],
            "a log": lambda f, put=put: ["plot", str(put(f / "run/log.csv").parent)],
            "a run's checkpoint": lambda f, put=put: w.train(put(f / "run/checkpoint.pt").parent, "--resume"),
        }
        for place, arguments in places.items():
            yield Case(f"{what} in place of {place}", arguments)


def _folders(w: World) -> Iterator[Case]:
    def many(f: Path) -> list[str]:
        for k in range(3000):
            _write(f / f"in/{k}.png", b"")
        return w.encode(f / "in", f / "out")

    def deep(f: Path) -> list[str]:
        return w.encode(_write(f / "in" / "/".join("d" * 60) / "a.png") and f / "in", f / "out")

    def rings(f: Path) -> list[str]:
        _write(f / "in/a/1.png")
        (f / "in/a/b").symlink_to("..")
        (f / "in/c").symlink_to("a")
        return w.encode(f / "in", f / "out")

    def outside(f: Path) -> list[str]:
        (f / "in").mkdir()
        (f / "in/a.png").symlink_to(w.root / "picture.png")
        return w.encode(f / "in", f / "out")

    def put(f: Path, *names: str, data: bytes = PNG) -> Path:
        (f / "in").mkdir()
        for name in names:
            _write(f / "in" / name, data)
        return f / "in"

    yield Case("an empty folder", lambda f: w.encode(put(f), f / "out"), REFUSED)
    yield Case("hidden images alone", lambda f: w.encode(put(f, ".a.png", ".b/c.png"), f / "out"), REFUSED)
    yield Case("texts alone", lambda f: w.encode(put(f, "a.txt", "b.csv"), f / "out"), REFUSED)
    yield Case("images in and out of class folders", lambda f: w.encode(put(f, "a.png", "b/c.png"), f / "out"), REFUSED)
    yield Case("a thousand classes", lambda f: w.encode(put(f, *(f"{k}/a.png" for k in range(300))), f / "out"), DONE)
    yield Case("an empty class", lambda f: w.encode((put(f, "a/1.png") / "b").mkdir() or f / "in", f / "out"), DONE)
    yield Case("3,000 empty files", many, REFUSED)
    yield Case("an image 60 folders deep", deep, DONE)
    yield Case("folders in a ring", rings, DONE)
    yield Case("a link to an image elsewhere", outside, DONE)
    yield Case("a folder within a suffix", lambda f: w.encode(put(f, "a.png/b.png"), f / "out"), DONE)
    yield Case("one image of many sizes", lambda f: w.encode(put(f, "a.PNG"), f / "out", "--image-size", "16"), DONE)
    yield Case("one image in a figure", lambda f: w.fid(put(f, "a.png")), REFUSED)
    yield Case("a source that is the output", lambda f: w.encode(put(f, "a.png"), f / "in"), REFUSED)
    yield Case("a source inside the output", lambda f: w.encode(put(f, "b/a.png") / "b", f / "in"), REFUSED)
    yield Case("an output inside the source", lambda f: w.encode(put(f, "b/a.png"), f / "in/out"), DONE)
    yield Case("an output below a file", lambda f: w.encode(put(f, "a.png"), f / "in/a.png/out"), REFUSED)
    for what, text in {
        "nothing": "", "a list": "[1]", "deep nesting": "[" * 100_000, "null": "null",
        "classes that are none": '{"classes": [null, {"a": 1}]}', "far too many classes": '{"classes": "x"}',
        "a number beyond counting": '{"classes": 1e999}', "5,000 digits": "9" * 5000,
        "shards": '{"shards": 1}',
    }.items():  # fmt: skip
        yield Case(
            f"drawn images whose manifest is {what}",
            lambda f, text=text: w.fid(  # type: ignore[misc]
                _write(put(f, "a.png", "b.png") / "manifest.json", text.encode()).parent
            ),
        )


def _tar(*members: tuple[str, bytes] | tarfile.TarInfo, kind: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return buffer.getvalue()


def _member(name: str, kind: bytes, target: str = "", **more: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.pax_headers = kind, target, more
    return info


def _with_field(data: bytes, at: int, field: bytes) -> bytes:
    """The first header with another field and the right sum."""
    header = bytearray(data[:512])
    header[at : at + len(field)] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + data[512:]


def _archives() -> dict[str, tuple[str, bytes, frozenset[int]]]:
    good = _tar(("a/1.png", PNG), ("b/1.png", PNG))
    link, hard = tarfile.SYMTYPE, tarfile.LNKTYPE
    return {
        "in order": ("a.tar", good, DONE),
        "cut after a header": ("a.tar", good[:512], REFUSED),
        "cut in a header": ("a.tar", good[:300], REFUSED),
        "cut in an image": ("a.tar", good[:900], REFUSED),
        "cut before its end": ("a.tar", good[: 2 * (512 + 512 * -(-len(PNG) // 512))], DONE),
        "with a changed sum": ("a.tar", good[:148] + b"0000000" + good[155:], REFUSED),
        "with a changed second sum": ("a.tar", _spoilt_second(good), REFUSED),
        "with more behind its end": ("a.tar", good + b"x" * 2000, DONE),
        "empty": ("a.tar", _tar(), REFUSED),
        "of no bytes": ("a.tar", b"", REFUSED),
        "of zeros": ("a.tar", bytes(10240), REFUSED),
        "that is a zip": ("a.tar", b"PK\x03\x04" + bytes(600), REFUSED),
        "that is an image": ("a.tar", PNG, REFUSED),
        "within an archive": ("a.tar", _tar(("b.tar", good)), REFUSED),
        "that is not packed but is called so": ("a.tar.gz", good, DONE),
        "with an absolute name": ("a.tar", _tar(("/etc/a.png", PNG)), REFUSED),
        "with a way up": ("a.tar", _tar(("../a.png", PNG)), REFUSED),
        "with a way up inside": ("a.tar", _tar(("a/../../b.png", PNG)), REFUSED),
        "with an empty name": ("a.tar", _tar(("", PNG)), EITHER),
        "with a name of dots": ("a.tar", _tar(("...png", PNG)), REFUSED),
        "with a name of 5,000 letters": ("a.tar", _tar(("a" * 5000 + ".png", PNG)), EITHER),
        "with a name in other bytes": ("a.tar", _tar((os.fsdecode(b"\xff.png"), PNG), kind=tarfile.GNU_FORMAT), EITHER),
        "with a line break in a name": ("a.tar", _tar(("a\nb.png", b"x")), REFUSED),
        "with an escape sequence in a name": ("a.tar", _tar(("a\x1b[31m.png", b"x")), REFUSED),
        "with a class of escape sequences": ("a.tar", _tar(("a\x1b[31m/a.png", PNG)), EITHER),
        "with the same name twice": ("a.tar", _tar(("a.png", PNG), ("a.png", b"x")), EITHER),
        "with a file and a folder of one name": ("a.tar", _tar(("a.png", PNG), ("a.png/b.png", PNG)), EITHER),
        "with a link outside": ("a.tar", _tar(_member("a.png", link, "/etc/passwd")), REFUSED),
        "with a link to itself": ("a.tar", _tar(_member("a.png", link, "a.png")), REFUSED),
        "with a hard link to what comes later": ("a.tar", _tar(_member("a.png", hard, "b.png"), ("b.png", PNG)), DONE),
        "with a hard link outside": ("a.tar", _tar(_member("a.png", hard, "/etc/passwd")), REFUSED),
        "with a hard link to itself": ("a.tar", _tar(_member("a.png", hard, "a.png")), REFUSED),
        "with a device": ("a.tar", _tar(_member("a.png", tarfile.CHRTYPE)), REFUSED),
        "with a pipe": ("a.tar", _tar(_member("a.png", tarfile.FIFOTYPE)), REFUSED),
        "with a folder called image": ("a.tar", _tar(_member("a.png", tarfile.DIRTYPE)), REFUSED),
        **_odd_headers(),
    }


def _odd_headers() -> dict[str, tuple[str, bytes, frozenset[int]]]:
    sparse, one, pax = tarfile.GNUTYPE_SPARSE, _tar(("a.png", PNG)), _tar(("é" * 60 + ".png", PNG))
    return {
        "with an unknown kind of member": ("a.tar", _with_field(one, 156, b"Z"), EITHER),
        "with a sparse member": ("a.tar", _with_field(one, 156, sparse), EITHER),
        "with a sparse member of 2^60 bytes": (
            "a.tar",
            _with_field(_with_field(one, 156, sparse), 483, b"\x80\0\0\0\x10\0\0\0\0\0\0\0"),
            EITHER,
        ),
        "with a size of 2^62": ("a.tar", _with_field(one, 124, b"\x80\0\0\0\x40\0\0\0\0\0\0\0"), REFUSED),
        "with a negative size": ("a.tar", _with_field(one, 124, b"\xff" * 12), EITHER),
        "with a size in letters": ("a.tar", _with_field(one, 124, b"abcdefghijk\0"), REFUSED),
        "with a date of 2^80": ("a.tar", _with_field(one, 136, b"\x80\0" + b"\xff" * 10), EITHER),
        "with a long name": ("a.tar", pax, DONE),
        "with an extended header of 2^33 bytes": (
            "a.tar",
            _with_field(pax, 124, b"100000000000"[:11] + b"\0"),
            REFUSED,
        ),
        "with an extended size": ("a.tar", _tar(_sized("99999999999999999999")), EITHER),
        "with an extended size in letters": ("a.tar", _tar(_sized("x")), EITHER),
        "with a negative extended size": ("a.tar", _tar(_sized("-512")), EITHER),
        "with an extended sparse map": (
            "a.tar",
            _tar(_member("a.png", tarfile.REGTYPE, **{"GNU.sparse.map": "0,1,x", "GNU.sparse.size": "9" * 30})),
            EITHER,
        ),
        "with extended headers of a megabyte": (
            "a.tar",
            _tar(*(_member(f"{k}.png", tarfile.REGTYPE, comment="x" * 10_000) for k in range(100))),
            EITHER,
        ),
    }


def _packed_archives() -> dict[str, tuple[str, bytes, frozenset[int]]]:
    good = _tar(("a/1.png", PNG), ("b/1.png", PNG))
    zipped, packed = gzip.compress(good), lzma.compress(good)
    return {
        "that is packed but is not called so": ("a.tar", zipped, DONE),
        "packed and cut at once": ("a.tar.gz", zipped[:15], REFUSED),
        "packed and cut halfway": ("a.tar.gz", zipped[: len(zipped) // 2], REFUSED),
        "packed and cut at its sum": ("a.tar.gz", zipped[:-3], REFUSED),
        "packed with a wrong sum": ("a.tar.gz", zipped[:-8] + bytes(8), REFUSED),
        "packed and changed": ("a.tar.gz", zipped[:60] + b"\xff" * 9 + zipped[69:], REFUSED),
        "packed by xz and cut halfway": ("a.tar.xz", packed[: len(packed) // 2], REFUSED),
        "packed by xz and changed": ("a.tar.xz", packed[:60] + b"\xff" * 9 + packed[69:], REFUSED),
        "packed by xz, its signature alone": ("a.tar.xz", packed[:6], REFUSED),
        "packed twice": ("a.tar.gz", gzip.compress(zipped), REFUSED),
        "packed with more behind it": ("a.tar.gz", zipped + b"x" * 99, EITHER),
        "packed in two parts": ("a.tar.gz", gzip.compress(good[:700]) + gzip.compress(good[700:]), DONE),
        "that unpacks to 400 MiB of zeros": ("a.tar.gz", gzip.compress(bytes(400 << 20), 1), REFUSED),
    }


def _spoilt_second(data: bytes) -> bytes:
    second = 512 + 512 * -(-len(PNG) // 512)
    return data[: second + 148] + b"0000000" + data[second + 155 :]


def _sized(size: str) -> tarfile.TarInfo:
    return _member("a.png", tarfile.REGTYPE, size=size)


def _tars(w: World) -> Iterator[Case]:
    for what, (name, data, allowed) in (_archives() | _packed_archives()).items():
        yield Case(
            f"an archive {what}",
            lambda f, name=name, data=data: w.encode(_write(f / name, data), f / "out"),  # type: ignore[misc]
            allowed,
        )
        yield Case(
            f"an archive {what}, beside a good one",
            lambda f, name=name, data=data: w.encode(  # type: ignore[misc]
                _write(f / "in" / name, data).parent, _write(f / "in/b.tar", _tar(("a/1.png", PNG))).parents[1] / "out"
            ),
        )
