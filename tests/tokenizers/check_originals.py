"""Each tokenizer's original beside ours: drawn weights, saved as published, the same tokens and images.

    python -m tests.tokenizers.check_originals CHECKOUTS PICTURES [--channels 32] [--number 1000]

CHECKOUTS holds the public repositories taming-transformers, latent-diffusion, diffusers, LlamaGen, open-muse and
1d-tokenizer; what they import (einops, for instance) must be installed. Their code is not part of this project.
Sizes are those of ``tokenizers/<name>/config.yaml``, with fewer channels unless ``--channels 128``. ``--fixtures``
holds ``originals.json`` against the originals instead. The exit code is 1 where a promise is broken.
"""

import argparse
import contextlib
import io
import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ggm_image.data.sources.image_files import open_source
from ggm_image.image.preprocess import preprocess, to_model
from ggm_image.tokenizers.registry import find_tokenizer, load_tokenizer
from tests.tokenizers import layouts
from tests.tokenizers.originals import (
    ROWS,
    Original,
    Row,
    build_diffusers,
    build_gumbel,
    build_ldm,
    build_llamagen,
    build_muse,
    build_taming,
    build_titok,
    originals_at,
    reduced,
)

TOLERANCE = 1e-4  # of decoded values on [-1, 1]
NEAR_TIE = 1e-3  # codes whose distances differ by a smaller share are equally near: float32 products decide
BATCH = 20


@dataclass
class Outcome:
    """What one comparison found.

    Attributes:
        tokens: how many were compared.
        used: different codes among the original's.
        differ: tokens that ours are not.
        gap: the largest share by which the distances of two such codes differ, in double precision.
        decoded: the largest difference of a decoded value on [-1, 1], of the original's tokens.
        inside: share of decoded values that are not cut off at the ends of the range.
    """

    tokens: int = 0
    used: int = 0
    differ: int = 0
    gap: float = 0.0
    decoded: float = 0.0
    inside: float = 0.0

    @property
    def kept(self) -> bool:
        """Whether tokens are the same, ties aside, and images within the tolerance."""
        return self.gap < NEAR_TIE and self.decoded < TOLERANCE and self.inside > 0.8 and self.used > 20


@torch.no_grad()
def compare(row: Row, checkouts: Path, channels: int, images: Callable[[int], Tensor], number: int) -> Outcome:
    torch.manual_seed(0)
    sizes = reduced(row.known, channels)
    with originals_at(checkouts), contextlib.redirect_stdout(io.StringIO()):
        original = row.build(sizes)
    original.draw(images(row.side)[:64])
    with tempfile.TemporaryDirectory() as folder:
        ours = load_tokenizer(row.save(original, sizes, Path(folder)))
    outcome, used, inside = Outcome(), set[int](), 0.0
    for batch in images(row.side)[:number].split(BATCH):
        z = original.latents(batch)
        theirs, mine = original.tokens(z), ours.encode(batch)
        different = theirs != mine
        if different.any():
            scores = original.scores(z)[different]
            chosen = scores.gather(1, torch.stack([theirs[different], mine[different]], dim=1))
            outcome.gap = max(outcome.gap, float((chosen.diff().abs() / chosen.abs().amin(1, keepdim=True)).max()))
        outcome.tokens += theirs.numel()
        outcome.differ += int(different.sum())
        used.update(theirs.flatten().tolist())
        decoded = original.decode(theirs)
        outcome.decoded = max(outcome.decoded, float((decoded - ours.decode(theirs)).abs().max()))
        inside += float((decoded.abs() < 1).double().sum()) / decoded[0].numel()
    outcome.used, outcome.inside = len(used), inside / number
    return outcome


def fixture_original(name: str, checkouts: Path, folder: Path) -> Original:
    """The original of one of `layouts.LAYOUTS`, with the weights in its file."""
    path = layouts.LAYOUTS[name][1](folder)
    spec = find_tokenizer(path)
    builders = {"taming": build_taming, "gumbel": build_gumbel, "diffusers": build_diffusers,
                "llamagen": build_llamagen, "maskgit": build_muse if path.is_dir() else build_titok}  # fmt: skip
    build = build_ldm if name == "latent-diffusion" else builders[spec.family]
    with originals_at(checkouts), contextlib.redirect_stdout(io.StringIO()):
        original = build(spec.architecture)
    if spec.family == "diffusers":
        home = path / "vqvae" if (path / "vqvae").is_dir() else path
        return Original(type(original.module).from_pretrained(home), unit_range=original.unit_range)
    file = path if path.is_file() else next(f for f in sorted(path.rglob("*")) if f.suffix in (".ckpt", ".bin"))
    stored = torch.load(file, weights_only=False)
    stored = stored.get("state_dict", stored.get("model", stored))
    stored = {re.sub("^first_stage_model\\.", "", key): value for key, value in stored.items()}
    outside = ("loss.", "transformer.", "cond_stage_model.")
    original.module.load_state_dict({key: value for key, value in stored.items() if not key.startswith(outside)})
    return original


@torch.no_grad()
def fixtures(checkouts: Path) -> Iterator[tuple[str, int, float]]:
    """Of each layout: tokens that differ from those recorded, and the largest difference of a recorded pixel."""
    for name in layouts.LAYOUTS:
        with tempfile.TemporaryDirectory() as folder:
            original = fixture_original(name, checkouts, Path(folder))
        recorded = layouts.ORIGINALS[layouts.SAME_WEIGHTS.get(name, name)]
        tokens = original.tokens(original.latents(layouts.pictures()))
        differ = int((tokens.flatten(1) != torch.tensor(recorded["tokens"])).sum())
        probe = original.decode(tokens)[:, :, 3::8, 5::8].flatten()
        yield name, differ, float((probe - torch.tensor(recorded["pixels"])).abs().max())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", type=Path)
    parser.add_argument("pictures", type=Path, nargs="?", help="a folder or a tar of images")
    parser.add_argument("--number", type=int, default=1000)
    parser.add_argument("--channels", type=int, default=32, help="of the first level; published are 128")
    parser.add_argument("--only", choices=ROWS)
    parser.add_argument("--fixtures", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)  # sums in another order would decide other ties
    kept = True
    if options.fixtures:
        for name, differ, largest in fixtures(options.checkouts):
            kept &= differ == 0 and largest < TOLERANCE
            print(f"{name}: {differ} tokens differ, pixels by at most {largest:.1e}", flush=True)
        return 0 if kept else 1
    if options.pictures is None:
        parser.error("PICTURES is missing")
    source = open_source(options.pictures)
    step = max(1, len(source) // options.number)
    chosen = [source[k * step] for k in range(min(options.number, len(source)))]
    made: dict[int, Tensor] = {}

    def images(side: int) -> Tensor:
        if side not in made:
            made[side] = to_model(torch.stack([preprocess(image, side) for image in chosen]))
        return made[side]

    print("| original | tokens | codes used | differ | gap of those | decoded |\n| --- | --- | --- | --- | --- | --- |")
    found = {}
    for name, row in ROWS.items():
        if options.only in (None, name):
            o = found[name] = compare(row, options.checkouts, options.channels, images, len(chosen))
            kept &= o.kept
            gap = f"{o.gap:.0e}" if o.differ else ""
            print(f"| {name} | {o.tokens:,} | {o.used:,} | {o.differ} | {gap} | {o.decoded:.1e} |", flush=True)
    if options.json:
        options.json.write_text(json.dumps({name: asdict(o) for name, o in found.items()}, indent=1) + "\n")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
