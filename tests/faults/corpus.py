"""Hostile and merely odd inputs for every command, and what each may end in: its result, or one line that helps.

A `Case` writes its inputs into a folder of its own and gives the command line over them. `judge` runs it in this
process and says what is wrong with how it ended. The cases themselves are in ``bad_*.py``.
"""

import io
import os
import re
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from PIL import Image

from ggm_image.cli.main import main
from tests.faults.stories import CONFIG, TOKENIZER_CONFIG, Means
from tests.models import tiny_model_folder

DONE, REFUSED = frozenset({0}), frozenset({2})
EITHER = DONE | REFUSED
SECONDS, MEMORY, DISK = 20, 1 << 30, 256 << 20
"""What no case may take: time, memory beyond what the process has, and the largest file it may write."""
_LINE = re.compile(r"error: .+ \(.*\); .+")
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
CPU = ["--device", "cpu"]


@dataclass(frozen=True)
class Case:
    """One input.

    Attributes:
        name: what is odd about it.
        make: writes it into an empty folder, where outputs go too, and gives the command line.
        allowed: exit codes.
    """

    name: str
    make: Callable[[Path], list[str]]
    allowed: frozenset[int] = EITHER


@dataclass(frozen=True)
class World:
    """Whole and ordinary inputs, of which every case spoils or replaces one."""

    root: Path

    def path(self, name: str) -> str:
        return str(self.root / name)

    def encode(self, source: object, out: Path, *more: str, tokenizer: object = "") -> list[str]:
        return ["encode", str(source), str(out), "--tokenizer", str(tokenizer or self.root / "tokenizer"), *CPU, *more]

    def decode(self, tokens: object, out: Path, *more: str) -> list[str]:
        return ["decode", str(tokens), str(out), *CPU, *more]

    def train(self, out: Path, *more: str, config: object = "", data: object = "") -> list[str]:
        config, data = config or self.root / "c.yaml", data or self.root / "tokens"
        return ["train", str(config), "--data", str(data), "--out", str(out), *CPU, *more]

    def train_tokenizer(self, out: Path, *more: str, config: object = "", data: object = "") -> list[str]:
        config, data = config or self.root / "t.yaml", data or self.root / "pictures"
        return ["train-tokenizer", str(config), "--data", str(data), "--out", str(out), *CPU, *more]

    def sample(self, out: Path, *more: str, model: object = "") -> list[str]:
        quick = ["-n", "1", "--sweeps", "1", "--block", "16"]
        return ["sample", "--model", str(model or self.root / "model"), "--out", str(out), *quick, *CPU, *more]

    def inpaint(self, out: Path, *more: str, image: object = "", mask: object = "") -> list[str]:
        inputs = [str(image or self.root / "picture.png"), str(mask or self.root / "mask.png")]
        return ["inpaint", *inputs, "--out", str(out), "--model", self.path("model"), *CPU, *more]

    def signal(self, image: object, out: Path, *more: str) -> list[str]:
        return ["signal", str(image), "--out", str(out), "--model", self.path("model"), *CPU, *more]

    def fid(self, generated: object, *more: str, reference: object = "", features: object = "") -> list[str]:
        reference, features = reference or self.root / "pictures", features or self.root / "means.pt"
        quick = ["--bootstrap", "0", *CPU]
        return ["fid", str(generated), str(reference), "--features", str(features), *quick, *more]


def make_world(root: Path) -> World:
    """Images in classes, a model with its tokenizer, tokens, features, a run's log, configs."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "ship"):
        (root / "pictures" / name).mkdir(parents=True)
        for k in range(4):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(root / f"pictures/{name}/{k}.png")
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(root / "picture.png")
    mask = np.zeros((16, 16), dtype=np.uint8)
    mask[4:8, 4:8] = 255
    Image.fromarray(mask).save(root / "mask.png")
    tiny_model_folder(root)
    torch.jit.script(Means()).save(str(root / "means.pt"))
    (root / "c.yaml").write_text(CONFIG.replace("steps: 60", "steps: 1").replace("sample_every: 30", "sample_every: 0"))
    (root / "t.yaml").write_text(TOKENIZER_CONFIG.replace("steps: 30", "steps: 1"))
    world = World(root)
    for arguments in (
        world.encode(root / "pictures", root / "tokens", "--shard-size", "5"),
        world.fid(root / "pictures", "--statistics", str(root / "saved")),
        world.train(root / "run"),
    ):
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
            assert main(arguments) == 0, arguments
    return world


class TooLong(BaseException):
    """A case has not ended in time."""


@contextmanager
def _limits(seconds: int) -> Iterator[None]:
    """Raise `TooLong` after so many seconds, and an OSError where a file grows beyond ``DISK``."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    disk = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (DISK, disk[1]))
    signal.setitimer(signal.ITIMER_REAL, seconds, 5)  # again: what cleans up may hang too
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before[0])
        signal.signal(signal.SIGXFSZ, before[1])
        resource.setrlimit(resource.RLIMIT_FSIZE, disk)


def _memory(name: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process, in bytes; 0 where the system does not say."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = re.search(rf"{name}:\s+(\d+) kB", text)
    return int(found[1]) * 1024 if found else 0


def _forget_peak() -> None:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Kind and size of everything below a folder; links are not followed."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(place, name)
            status = os.lstat(path)
            found[os.path.relpath(path, folder)] = (status.st_mode, status.st_size if name in files else 0)
    return found


def judge(case: Case, folder: Path) -> list[str]:
    """Run a case in an empty folder and say what is wrong with how it ended; nothing, where all is well."""
    arguments = case.make(folder)
    before, resident = tree(folder), _memory("VmRSS")
    _forget_peak()
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # as a terminal's, which refuses lone surrogates
    err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    code: int | None = None
    complaints = []
    with redirect_stdout(out), redirect_stderr(err), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with _limits(SECONDS):
                code = main(arguments)
        except TooLong:
            complaints.append(f"not done after {SECONDS} s")
        except BaseException as error:
            complaints.append(f"a traceback: {type(error).__name__}: {str(error)[:200]}")
    err.flush()
    lines = err.buffer.getvalue().decode().splitlines()  # type: ignore[attr-defined]
    grown = max(0, _memory("VmHWM") - resident)
    if grown > MEMORY:
        complaints.append(f"took {grown >> 20} MiB")
    noise = [w for w in caught if not issubclass(w.category, DeprecationWarning | FutureWarning | ResourceWarning)]
    if noise:
        complaints.append(f"a warning: {noise[0].message}")
    if code is None:
        return complaints
    if code not in case.allowed:
        complaints.append(f"exit code {code}, {lines[-1:]}")
    after = tree(folder)
    if left := [name for name in after if _TEMPORARY.match(os.path.basename(name))]:
        complaints.append(f"temporary files are left: {left}")
    if code:
        complaints += _complaints_of_refusal(lines)
        diverged = any("diverged" in line or "is not finite" in line for line in lines)  # a run that has begun
        changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        if changed and not diverged:
            complaints.append(f"files were changed: {changed[:3]}")
    return complaints


def _complaints_of_refusal(lines: list[str]) -> list[str]:
    lines = [line for line in lines if not line.startswith("note: ")]  # of what was left out, before it was refused
    if len(lines) != 1:
        return [f"not one line but {len(lines)}: {lines[:3]}"]
    line, found = lines[0], []
    if not _LINE.fullmatch(line):
        found.append(f"not what, got and how to fix: {line}")
    if not line.isprintable():
        found.append(f"control characters: {line!r}")
    if len(line) > 1500:
        found.append(f"a line of {len(line)} characters")
    return found


def cases(world: World) -> dict[str, list[Case]]:
    """All cases, by theme."""
    from tests.faults import bad_configs, bad_files, bad_options, bad_pictures, bad_sources, bad_weights

    found: dict[str, list[Case]] = {}
    for module in (bad_pictures, bad_sources, bad_configs, bad_options, bad_weights, bad_files):
        for theme, some in module.cases(world).items():
            assert theme not in found, theme
            found[theme] = some
    return found


THEMES = (
    "formats", "cut images", "changed images", "bombs", "names", "special files", "folders", "tars", "yaml",
    "overrides", "model configs", "tokenizer configs", "options", "classes", "masks", "weights", "shards",
    "manifests", "features", "conversions", "logs", "outputs",
)  # fmt: skip
"""Keys of `cases`, known before there is a world."""


if __name__ == "__main__":
    import tempfile

    wanted = sys.argv[1:] or list(THEMES)
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "world").mkdir()
        found = cases(make_world(Path(place) / "world"))
        for theme in wanted:
            for number, case in enumerate(found[theme]):
                here = Path(place) / f"{theme.replace(' ', '-')}-{number}"
                here.mkdir()
                for complaint in judge(case, here):
                    print(f"{theme}: {case.name}: {complaint}", flush=True)
