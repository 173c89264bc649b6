"""Throughput of encoding files as a share of the bare tokenizer's forward pass, at the batch size that suits it best.

python tools/benchmarks/bench_encode.py SRC --tokenizer cifar10-f4-4096 --images 2048 --bare 1,4,16,64

Without `--bare` the forward pass has the batch size of the encoding.

`share` is by the clock. `processor_share` is by the processor time of this process: it says the same for a
tokenizer on an idle CPU, and still holds where other programs disturb the clock; on a GPU it says nothing.
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from ggm_image import load_tokenizer
from ggm_image.data.encode import PRECISIONS, check_image_size, encode, fitting_batch
from ggm_image.data.sources.image_files import ImageSource, open_source
from ggm_image.data.sources.prefetch import default_workers
from ggm_image.image.preprocess import preprocess, to_model
from ggm_image.runtime.numerics import exact_arithmetic
from ggm_image.tokenizers.base import Tokenizer


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def bare_cost(tokenizer: Tokenizer, batch: torch.Tensor, repeats: int, half: bool) -> tuple[float, float]:
    """Seconds and processor seconds an image of the forward pass alone, on floats on the device already."""
    device = batch.device.type
    with exact_arithmetic():
        tokenizer.encode(batch, half=half)
        synchronize(device)
        start, used = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            tokenizer.encode(batch, half=half)
        synchronize(device)
    n = repeats * len(batch)
    return (time.perf_counter() - start) / n, (time.process_time() - used) / n


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--images", type=int, default=2048, help="images a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, help="as `ggm-image encode` by default")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of both; bf16 is in channels-last")
    parser.add_argument("--bare", default="", metavar="N,N,...", help="batch sizes to try for the forward pass alone")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def files_cost(
    source: ImageSource, tokenizer: Tokenizer, size: int, options: argparse.Namespace
) -> tuple[float, float]:
    """Seconds, by the clock and of the processor, that an image takes from its file to its tokens."""
    n = len(source)
    with tempfile.TemporaryDirectory() as folder:
        start, used = time.perf_counter(), time.process_time()
        encode(
            source,
            Path(folder) / "tokens",
            tokenizer,
            image_size=size,
            batch_size=options.batch_size,
            device=options.device,
            workers=options.workers,
            precision=options.precision,
        )
        return (time.perf_counter() - start) / n, (time.process_time() - used) / n


def main() -> None:
    parser = make_parser()
    options = parser.parse_args()

    whole = open_source(options.source)
    tokenizer = load_tokenizer(options.tokenizer, device=options.device)
    size = check_image_size(tokenizer, options.image_size)
    options.batch_size = options.batch_size or fitting_batch(options.device, size)
    n = min(options.images, len(whole)) // options.batch_size * options.batch_size
    if n == 0:
        parser.error(f"SRC must hold at least one batch of {options.batch_size} images, got {len(whole)}")
    source = ImageSource(whole.description, whole.names[:n], whole.labels[:n], whole.class_names, whole.read)
    bare_sizes = [int(number) for number in options.bare.split(",") if number] or [options.batch_size]
    images = [preprocess(source[k], size) for k in range(min(n, max(bare_sizes)))]
    batch = to_model(torch.stack(images)).to(options.device)
    half, bare_tokenizer = options.precision == "bf16", tokenizer
    if half:
        bare_tokenizer = copy.deepcopy(tokenizer).to(memory_format=torch.channels_last)
        batch = batch.contiguous(memory_format=torch.channels_last)
    clock = 0 if options.device.startswith("cuda") else 1
    tried = {k: bare_cost(bare_tokenizer, batch[:k], max(1, n // k), half)[clock] for k in bare_sizes}
    best = min(tried, key=tried.__getitem__)
    batch = batch[:best]

    rounds = []
    for _ in range(options.rounds):
        # Bare, files, bare: what else the machine does meanwhile falls on both alike.
        before = bare_cost(bare_tokenizer, batch, max(1, n // best), half)
        files = files_cost(source, tokenizer, size, options)
        after = bare_cost(bare_tokenizer, batch, max(1, n // best), half)
        bare = [(b + a) / 2 for b, a in zip(before, after, strict=True)]
        rounds.append(
            {
                "bare_per_s": 1 / bare[0],
                "files_per_s": 1 / files[0],
                "share": bare[0] / files[0],
                "processor_share": bare[1] / files[1],
            }
        )
    median = {key: statistics.median(entry[key] for entry in rounds) for key in rounds[0]}
    result = {
        "images": n,
        "batch_size": options.batch_size,
        "bare_batch_size": best,
        "bare_seconds": tried,
        "image_size": size,
        "precision": options.precision,
        "workers": options.workers,
        "threads": torch.get_num_threads(),
        "device": options.device,
        "rounds": rounds,
        "median": median,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
