"""Throughput of encoding files as a share of the bare tokenizer's forward pass, at the same batch size.

python tools/bench_encode.py SRC --tokenizer cifar10-f4 --images 2048
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch

from ggm_image import load_tokenizer
from ggm_image.data.encode import check_image_size, default_workers, encode, exact_arithmetic
from ggm_image.data.images import ImageSource, open_source, preprocess, to_model
from ggm_image.tokenizers.base import Tokenizer


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def bare_rate(tokenizer: Tokenizer, batch: torch.Tensor, repeats: int, device: str) -> float:
    """Pictures a second of the forward pass alone, on floats that lie on the device already."""
    with exact_arithmetic():
        tokenizer.encode(batch)
        synchronize(device)
        start = time.perf_counter()
        for _ in range(repeats):
            tokenizer.encode(batch)
        synchronize(device)
    return repeats * len(batch) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--images", type=int, default=2048, help="pictures a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()

    whole = open_source(options.source)
    n = min(options.images, len(whole)) // options.batch_size * options.batch_size
    if n == 0:
        parser.error(f"SRC must hold at least one batch of {options.batch_size} pictures, got {len(whole)}")
    source = ImageSource(whole.description, whole.names[:n], whole.labels[:n], whole.class_names, whole.read)
    tokenizer = load_tokenizer(options.tokenizer, device=options.device)
    size = check_image_size(tokenizer, options.image_size)
    pictures = [preprocess(source[k], size) for k in range(options.batch_size)]
    batch = to_model(torch.stack(pictures)).to(options.device)

    rounds = []
    for _ in range(options.rounds):
        # Bare, files, bare: what else the machine does meanwhile falls on both alike.
        before = bare_rate(tokenizer, batch, n // options.batch_size, options.device)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            encode(
                source,
                Path(folder) / "tokens",
                tokenizer,
                image_size=size,
                batch_size=options.batch_size,
                device=options.device,
                workers=options.workers,
            )
            files = n / (time.perf_counter() - start)
        after = bare_rate(tokenizer, batch, n // options.batch_size, options.device)
        bare = 2 / (1 / before + 1 / after)
        rounds.append({"bare_per_s": bare, "files_per_s": files, "share": files / bare})
    shares = sorted(entry["share"] for entry in rounds)
    result = {
        "images": n,
        "batch_size": options.batch_size,
        "image_size": size,
        "workers": options.workers,
        "threads": torch.get_num_threads(),
        "device": options.device,
        "rounds": rounds,
        "median_share": shares[len(shares) // 2],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
