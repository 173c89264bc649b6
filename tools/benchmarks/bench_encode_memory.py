"""Peak memory of encoding against the number of images: the same for all of them, where the set is a stream.

python tools/benchmarks/bench_encode_memory.py --images 10000 200000

Each size is encoded and proved in processes of their own, from tar shards that are made while they are read; nothing
but the tokens is on disk. The tokenizer takes means of colours. `--kind tar` makes one tar of class folders on disk
instead, which is indexed: its names and places are held in memory. `over_first` compares within one run.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

PER_SHARD = 10_000
SIDE = 8
DIGITS = 4


def image_file(number: int) -> bytes:
    """A small file whose colours are its number; a PPM is quickest to make."""
    colours = number.to_bytes(3, "little") + bytes(9)
    return b"P6 2 2 255\n" + colours


def write_shard(file: Any, names: list[tuple[str, bytes]]) -> None:
    with tarfile.open(fileobj=file, mode="w|") as tar:
        for name, content in names:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
            tar.members.clear()


def shard(number: int, size: int) -> list[tuple[str, bytes]]:
    """The files of one shard of WebDataset."""
    files = []
    for k in range(number * PER_SHARD, number * PER_SHARD + size):
        files += [(f"{k:09d}.ppm", image_file(k)), (f"{k:09d}.cls", str(k % 10).encode())]
    return files


def peak_megabytes() -> float:
    """The most memory that this process has held."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / (1 << 20)


def work(step: str, source: str, out: Path) -> dict[str, Any]:
    """Encode or prove in this process; its peak and seconds."""
    import torch

    from ggm_image.data.encode import encode
    from ggm_image.data.token_cache.verify import verify
    from ggm_image.tokenizers.base import Tokenizer

    class Means(Tokenizer):
        def __init__(self) -> None:
            super().__init__()
            self.name, self.sha256, self.image_size = "means", "0" * 64, SIDE
            self.codebook_size, self.downscale = 256, 4

        def encode_indices(self, images: torch.Tensor) -> torch.Tensor:
            cells = torch.nn.functional.avg_pool2d(images.mean(dim=1, keepdim=True), 4)[:, 0]
            return ((cells + 1) * 127.5).round().long().clamp(0, 255)

        def decode_indices(self, tokens: torch.Tensor) -> torch.Tensor:
            raise NotImplementedError

    start, bare = time.perf_counter(), peak_megabytes()
    if step == "encode":
        encode(source, out, Means(), batch_size=256)
    else:
        verify(out)
    return {"peak_mb": peak_megabytes(), "imports_mb": bare, "seconds": time.perf_counter() - start}


def measure(images: int, kind: str, folder: Path) -> dict[str, Any]:
    shards, out = -(-images // PER_SHARD), folder / "tokens"
    if kind == "tar":
        source = str(folder / "images.tar")
        with open(source, "wb") as file:
            write_shard(file, [(f"{k % 10}/{k:09d}.ppm", image_file(k)) for k in range(images)])
    else:
        # The last shard is as full as the others: sizes are rounded up to whole shards.
        last = f"{shards - 1:0{DIGITS}d}"
        source = f"pipe:{sys.executable} {Path(__file__).resolve()} --print-shard {{{0:0{DIGITS}d}..{last}}}"
    entry: dict[str, Any] = {"images": images if kind == "tar" else shards * PER_SHARD}
    for step in ("encode", "verify"):
        command = [sys.executable, __file__, "--step", step, "--source", source, "--out", str(out)]
        entry[step] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--kind", choices=["shards", "tar"], default="shards")
    parser.add_argument("--print-shard", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--step", help=argparse.SUPPRESS)
    parser.add_argument("--source", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.print_shard is not None:
        write_shard(sys.stdout.buffer, shard(options.print_shard, PER_SHARD))
        return
    if options.step:
        print(json.dumps(work(options.step, options.source, options.out)))
        return
    rows = []
    for images in options.images:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(images, options.kind, Path(folder)))
        for step in ("encode", "verify"):
            rows[-1][step]["over_first"] = rows[-1][step]["peak_mb"] / rows[0][step]["peak_mb"]
    print(json.dumps({"kind": options.kind, "sizes": rows}, indent=2))


if __name__ == "__main__":
    main()
