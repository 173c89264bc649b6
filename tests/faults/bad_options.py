"""Numbers, names and classes on the command line; masks; places to write to."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tests.faults.bad_pictures import MODES, picture
from tests.faults.corpus import DONE, EITHER, REFUSED, Case, World

HUGE = str(10**18)
DIGITS = "9" * 5000
"""More digits than Python turns into a number."""
NUMBERS = ("-1", "0", "1.5", "nan", "inf", "-inf", "1e400", "abc", "", " 1 ", "0x10", "1_0", "²", "٣", HUGE, DIGITS)


def cases(world: World) -> dict[str, list[Case]]:
    return {
        "options": list(_options(world)),
        "classes": list(_classes(world)),
        "masks": list(_masks(world)),
        "outputs": list(_outputs(world)),
    }


def _options(w: World) -> Iterator[Case]:
    images = w.root / "pictures"
    commands: dict[str, tuple[Callable[[Path], list[str]], tuple[str, ...]]] = {
        "sample": (
            lambda f: w.sample(f / "out.png"),
            (
                "-n",
                "--sweeps",
                "--block",
                "--guidance",
                "--guidance-power",
                "--temperature",
                "--top-k",
                "--top-p",
                "--seed",
            ),
        ),
        "inpaint": (
            lambda f: w.inpaint(f / "out.png"),
            ("-n", "--dilate", "--feather", "--context", "--scales", "--tau", "--guidance", "--temperature", "--seed"),
        ),
        "signal": (lambda f: w.signal(w.root / "picture.png", f / "out.png"), ("--level", "--block")),
        "encode": (
            lambda f: w.encode(images, f / "out", "--report"),
            ("--image-size", "--batch-size", "--shard-size", "--workers", "--report-images", "--shifts", "--seed"),
        ),
        "decode": (lambda f: w.decode(w.root / "tokens", f / "out"), ("--batch-size",)),
        "fid": (lambda f: w.fid(images), ("--bootstrap", "--batch-size", "--seed")),
        "fid of a model": (lambda f: w.fid(f"model:{w.root / 'model'}", "-n", "4"), ("-n", "--sweeps", "--guidance")),
        "train": (lambda f: w.train(f / "run"), ("--seed",)),
    }
    for command, (make, options) in commands.items():
        for option in options:
            for number in NUMBERS:
                if command.startswith("fid") and option in ("-n", "--bootstrap") and number in (HUGE, DIGITS):
                    continue  # so many are drawn, as was asked for
                if option == "-n" and number == HUGE:
                    number = str(10**12)
                yield Case(
                    f"{command} {option} {number[:20]!r}",
                    lambda f, m=make, o=option, n=number: [*m(f), f"{o}={n}" if o.startswith("--") else f"{o}{n}"],  # type: ignore[misc]
                )
    yield from _texts(w)


def _texts(w: World) -> Iterator[Case]:
    """Options whose values are texts, and commands without what they need."""
    images = w.root / "pictures"
    for text in ("cpu:0", "cpu:9", "cuda", "cuda:99", "cuda:" + DIGITS, "cuda:٣", "cuda:-1", "mps", "tpu", "", "meta"):
        yield Case(f"--device {text[:20]!r}", lambda f, t=text: w.sample(f / "out.png", f"--device={t}"))  # type: ignore[misc]
    for text in ("", "worst", "BEST", "fast", "exact", "a" * 5000, "\x1b[31m", "é"):
        yield Case(f"--preset {text[:20]!r}", lambda f, t=text: w.sample(f / "out.png", f"--preset={t}"))  # type: ignore[misc]
    for text in (
        "", "left", "left=", "left=-1", "left=1.5", "left=4,left=4", "up=4", "left=²", "left=٣", "left=" + DIGITS,
        "left=16385", "left=0", "left=4,", "=4", "left=1e3", "left = 4 , top = 4",
    ):  # fmt: skip
        yield Case(f"--extend {text[:20]!r}", lambda f, t=text: w.inpaint(f / "out.png", f"--extend={t}"))  # type: ignore[misc]
    for text in ("", ",", "fid", "fid,fid", "FID", "fid;kid", "all", " fid , kid ", "prdc", "is"):
        yield Case(f"--metrics {text!r}", lambda f, t=text: w.fid(images, f"--metrics={t}"))  # type: ignore[misc]
    for text in ("", "inceptoin", "timm:", "timm:no_such", "timm:../x", "a/b.pt", "x.pt", "/", "clip ", "\x1b[31m"):
        yield Case(f"--features {text!r}", lambda f, t=text: w.fid(images, features=t or "''"), REFUSED)  # type: ignore[misc]
    for arguments in (
        [], ["fid"], ["fid", "a"], ["fid", "a", "b", "c"], ["encode"], ["encode", "a"], ["train"], ["smaple"], ["--no"],
        ["sample", "--no"], ["sample", "-x"], ["sample", "x"], ["sample", "--class"], ["decode", "a", "b", "c"],
        ["models", "x"], ["models", "--json"], ["models"], ["tokenizers", "--jsno"], ["tokenizers", "--json"],
        ["tokenizers"], ["tokenizers", "x"], ["plot"], ["plot", "--out"], ["convert"], ["convert", "a"], ["\x1b[31m"],
        ["signal"], ["inpaint"], ["inpaint", "a"], ["train-tokenizer", "a"], [""], ["--version", "x"], ["-"],
        ["encode", "a", "b", "--tokenizer", ""], ["encode", "", "b", "--tokenizer", "x"], ["decode", "", ""],
        ["sample", "--model", ""], ["signal", ""], ["inpaint", "", ""], ["plot", ""], ["convert", "", ""],
        ["train", "", "--data", "", "--out", ""], ["sample", "--order", "random"], ["sample", "--strength", "1"],
        ["sample", "--guide", ""], ["sample", "--guide", "/"], ["sample", "--guide", "none.png", "--strength", "0"],
        ["sample", "--curve", "steep"], ["sample", "--site-order", "spiral"], ["fid", "a", "b", "--site-order", ""],
        ["sample", "\x1b[31m"], ["sample", "--\x1b[31m"], ["encode", "a", "b", "--tokenizer", "\x1b[31m"],
    ):  # fmt: skip
        yield Case(f"ggm-image {arguments!r}", lambda f, a=arguments: a)  # type: ignore[misc]


CLASSES = (
    "", " ", "cat", "CAT", " cat ", "2", "02", "-1", "3", "99", "1.5", "1e0", "²", "٣", "①", DIGITS, "None", "cat,dog",
    "cta", "🐱", "cat\n", "\x1b[31m", "a" * 100_000, "[0]", "--",
)  # fmt: skip


def _classes(w: World) -> Iterator[Case]:
    commands: dict[str, Callable[[Path], list[str]]] = {
        "sample": lambda f: w.sample(f / "out.png"),
        "inpaint": lambda f: w.inpaint(f / "out.png"),
        "signal": lambda f: w.signal(w.root / "picture.png", f / "out.png"),
        "fid": lambda f: w.fid(f"model:{w.root / 'model'}", "-n", "4", "--sweeps", "1"),
    }
    for command, make in commands.items():
        for text in CLASSES:
            yield Case(f"{command} --class {text[:20]!r}", lambda f, m=make, t=text: [*m(f), f"--class={t}"])  # type: ignore[misc]


def _masks(w: World) -> Iterator[Case]:
    def saved(f: Path, mask: Image.Image, suffix: str = "png") -> Path:
        path = f / f"mask.{suffix}"
        mask.save(path)
        return path

    def grey(height: int, width: int, value: int, part: bool = False) -> Image.Image:
        pixels = np.full((height, width), 0 if part else value, dtype=np.uint8)
        if part:
            pixels[: max(1, height // 3), : max(1, width // 3)] = value
        return Image.fromarray(pixels)

    for what, mask in {
        "all black": grey(16, 16, 0),
        "all white": grey(16, 16, 255),
        "just grey enough": grey(16, 16, 128, True),
        "just too dark": grey(16, 16, 127, True),
        "of one pixel": grey(1, 1, 255),
        "a pixel too narrow": grey(16, 15, 255),
        "a pixel too large": grey(17, 17, 255, True),
        "twice as large": grey(32, 32, 255, True),
        "twice as large and white": grey(32, 32, 255),
        "very wide": grey(16, 4000, 255, True),
        "very high": grey(4000, 16, 255, True),
        "half as large": grey(8, 8, 255, True),
    }.items():
        for more in ([], ["--fit"], ["--extend=left=4"], ["--dilate=3", "--feather=3"]):
            if "very" in what and more != ["--fit"]:
                continue
            yield Case(
                f"a mask {what} {' '.join(more)}",
                lambda f, m=mask, o=more: w.inpaint(f / "out.png", *o, mask=saved(f, m)),  # type: ignore[misc]
            )
    for mode in MODES:
        if mode in ("PA", "LAB", "HSV", "YCbCr", "RGBX"):
            continue
        suffix = "tif" if mode in ("CMYK", "F", "I") else "png"
        allowed = DONE if mode in ("1", "L", "LA", "I", "I;16") else EITHER  # a mask of many colours is refused
        yield Case(
            f"a mask of mode {mode}",
            lambda f, m=mode, s=suffix: w.inpaint(f / "out.png", mask=saved(f, picture(m), s)),  # type: ignore[misc]
            allowed,
        )
    yield from _images(w, saved)


def _images(w: World, saved: Callable[..., Path]) -> Iterator[Case]:
    for mode in ("RGBA", "LA", "P", "RGB"):
        yield Case(
            f"an image of mode {mode} without a mask",
            lambda f, m=mode: ["inpaint", str(saved(f, picture(m))), "--out", str(f / "o.png"),  # type: ignore[misc]
                               "--model", w.path("model"), "--device", "cpu"],
        )  # fmt: skip
    for height, width in ((1, 1), (3, 16), (4, 4), (5, 7), (16, 3), (4, 400), (33, 17)):
        side = picture("RGB", max(height, width)).crop((0, 0, width, height))
        for command in ("signal", "inpaint"):
            yield Case(
                f"{command} of an image of {width} x {height}",
                lambda f, s=side, c=command: (
                    w.signal(saved(f, s), f / "o.png")  # type: ignore[misc]
                    if c == "signal"
                    else w.inpaint(f / "o.png", "--fit", image=saved(f, s))
                ),
            )
    yield Case("the image is its own mask", lambda f: w.inpaint(f / "out.png", mask=w.root / "picture.png"), REFUSED)


def _filled(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "note.txt").write_text("mine")
    return path


def _places() -> dict[str, Callable[[Path], Path]]:
    """Where an output must not go, or only just may, made below a folder."""

    def file(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        return path

    def ring(path: Path) -> Path:
        path.symlink_to(path.name)
        return path

    def hollow(path: Path) -> Path:
        path.symlink_to("nowhere/at/all")
        return path

    def pipe(path: Path) -> Path:
        os.mkfifo(path)
        return path

    return {
        "a folder that holds something": lambda f: _filled(f / "out"),
        "a file": lambda f: file(f / "out"),
        "a file called .png": lambda f: file(f / "out.png"),
        "a folder called .png": lambda f: _filled(f / "out.png"),
        "a place below a file": lambda f: file(f / "a") / "out",
        "an image below a file": lambda f: file(f / "a") / "out.png",
        "a name that is too long": lambda f: f / ("a" * 300),
        "an image whose name is too long": lambda f: f / ("a" * 300 + ".png"),
        "a name just short enough": lambda f: f / ("a" * 240),
        "an image's name just short enough": lambda f: f / ("a" * 250 + ".png"),
        "a link to itself": lambda f: ring(f / "out"),
        "an image that is a link to itself": lambda f: ring(f / "out.png"),
        "a link to nowhere": lambda f: hollow(f / "out"),
        "a pipe": lambda f: pipe(f / "out"),
        "an image that is a pipe": lambda f: pipe(f / "out.png"),
        "a suffix alone": lambda f: f / ".png",
        "another suffix": lambda f: f / "out.bmp",
        "a device": lambda f: Path("/dev/null"),
        "a place below a device": lambda f: Path("/dev/null/out"),
        "a place in /proc": lambda f: Path("/proc/self/out"),
        "twelve new folders": lambda f: f / "a/b/c/d/e/f/g/h/i/j/k/l",
    }


def _outputs(w: World) -> Iterator[Case]:
    commands: dict[str, Callable[[Path], list[str]]] = {
        "encode": lambda out: w.encode(w.root / "pictures", out),
        "decode": lambda out: w.decode(w.root / "tokens", out),
        "train": lambda out: w.train(out),
        "train-tokenizer": lambda out: w.train_tokenizer(out),
        "sample": lambda out: w.sample(out),
        "sample two": lambda out: w.sample(out, "-n", "2"),
        "inpaint": lambda out: w.inpaint(out),
        "inpaint two": lambda out: w.inpaint(out, "-n", "2"),
        "signal": lambda out: w.signal(w.root / "picture.png", out),
        "plot": lambda out: ["plot", w.path("run"), "--out", str(out)],
        "convert": lambda out: ["convert", w.path("tokenizer"), str(out)],
        "keep features": lambda out: w.fid(w.root / "pictures", "--statistics", str(out)),
        "trajectory": lambda out: w.sample(out.with_name("other.png"), "--trajectory", str(out)),
    }
    for what, place in _places().items():
        for command, make in commands.items():
            if what.startswith("a device") and command in ("train", "train-tokenizer"):
                continue
            yield Case(f"{command} into {what}", lambda f, m=make, p=place: m(p(f)))  # type: ignore[misc]
    for name in ("out.jpg", "out.webp", "out.tif", "out", "out.bmp"):
        for options in (["--quality", "0"], ["--quality", "lossless"], ["--quality", "²"], ["--format", "webp"]):
            yield Case(
                f"{name} with {' '.join(options)}",
                lambda f, n=name, o=options: w.sample(f / n, *o),  # type: ignore[misc]
            )
    yield Case("a resumed run that is none", lambda f: w.train(_filled(f / "run"), "--resume"), REFUSED)
    yield Case("a run that is there already", lambda f: w.train(w.root / "run"), REFUSED)
