"""Peak memory and time of inpainting a small hole in a large image, over the loaded model; and of `signal`.

    python tools/benchmarks/bench_inpaint_memory.py --size 4000x3000 --hole 30
    python tools/benchmarks/bench_inpaint_memory.py --signal --size 512x384

The image is a seeded gradient with noise, saved as PNG with its mask; both files are opened by the call that is timed.
Memory is the process's peak over what it held once the model was loaded and had inpainted a tiny image.
"""

import tempfile
import time
from pathlib import Path

import click
import numpy as np
from bench_encode_memory import peak_megabytes
from PIL import Image

from ggm_image import load_model
from ggm_image.cli.main import run
from ggm_image.cli.options import device_option


def synthetic(width: int, height: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    rows, columns = np.linspace(0, 200, height, dtype=np.float32), np.linspace(0, 50, width, dtype=np.float32)
    noise = rng.integers(0, 6, (height, width, 3), dtype=np.uint8)
    return noise + (rows[:, None] + columns).astype(np.uint8)[..., None]


@click.command(help=__doc__)
@click.option("--size", default="4000x3000", show_default=True, metavar="WIDTHxHEIGHT")
@click.option("--hole", type=click.IntRange(1), default=30, show_default=True, help="Its side in pixels.")
@click.option("--model", "model_name", default="cifar10", show_default=True)
@click.option("--signal", is_flag=True, help="Time the signal map instead.")
@device_option
def main(size: str, hole: int, model_name: str, signal: bool, device: str | None) -> None:
    width, height = (int(side) for side in size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        image, mask = Path(folder) / "image.png", Path(folder) / "mask.png"
        Image.fromarray(synthetic(width, height)).save(image, compress_level=1)
        white = np.zeros((height, width), dtype=np.uint8)
        white[height // 2 : height // 2 + hole, width // 2 : width // 2 + hole] = 255
        Image.fromarray(white).save(mask)
        del white
        model = load_model(model_name, device=device)
        side = max(model.image_size)
        small = synthetic(side, side)
        model.signal(small)
        model.inpaint(small, np.eye(side, dtype=bool))
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
        before, start = peak_megabytes(), time.perf_counter()
        if signal:
            model.signal(image)
        else:
            model.inpaint(image, mask)
        seconds = time.perf_counter() - start
        click.echo(f"{size}: {peak_megabytes() - before:.0f} MB over the loaded model, {seconds:.1f} s")


if __name__ == "__main__":
    raise SystemExit(run(main))
