"""Choose a model's sampling presets by measurement: figures of many sampler settings, and the best as a preset.

    python tools/experiments/calibrate_presets.py cifar10 val/ --features efficientnet-lite0 --features classifier.pt \\
        --train-images train/ --preset fast --grid guidance=4,6,8,10 temperature=0.9,1 --write fast

Samples n images at the preset's settings and at all combinations of the grid, and measures them against the images of
REFERENCE: Fréchet distance, precision, recall, density, coverage, class accuracy where the network is a classifier,
network passes (a guided call is two), and seconds per image. The first --features decides. Writes OUT.json after every
row, and OUT.md. The same command resumes: rows of the JSON are reused.

A grid entry is NAME=VALUE,VALUE..., or a YAML file of lists. With --search ROWS the grid is not measured as a whole:
from the preset on, one option after the other is varied over its list, and the best value is kept, until nothing
improves or ROWS are measured. The best is the smallest distance among the rows whose recall is at least --min-recall.

Two bounds are measured the same way: other real images, and their reconstructions by the model's tokenizer. Their
difference is what the tokenizer costs. --reconstructions-of train takes the first of --train-images, each class in
equal share; held-out those of REFERENCE that follow the first --reference-count; reference the reference images
themselves, whose reconstructions are closer to them than those of other images.

A preset that is chosen on some images looks better on them than on others: measure the winner with another --seed, and
where there are enough images, on another reference.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import torch
from experiments import Results
from image_figures import FeatureNetwork, Images, equal_share, figures, load_images
from preset_search import Goal, Row, coordinate_search, parse_grid
from preset_tables import bounds_table, preset_line, setting_line, table
from quality_vs_cost import canonical, every_combination, passes
from torch import Tensor

from ggm_image.cli.main import run
from ggm_image.data.encode import encode_batch
from ggm_image.errors import UserError
from ggm_image.io.files import write_text
from ggm_image.metrics.extract_features import versions
from ggm_image.metrics.feature_extractors import load_extractor
from ggm_image.metrics.prdc import DENSITY_K
from ggm_image.pipelines.image import Model
from ggm_image.pipelines.load import load_model
from ggm_image.pipelines.model_folder import find_model
from ggm_image.runtime.devices import choose_device
from ggm_image.runtime.streams import say
from ggm_image.sampler.settings import Settings

SOURCES = ("train", "held-out", "reference")
DECODED_PIXELS = 1 << 20
"""Pixels that are decoded in one pass."""


class Calibration:
    """Measures settings and bounds, and keeps their rows.

    Args:
        model: on its device.
        networks: with the reference.
        results: where rows are kept.
        n: images for each row.
        seed: of the samples.
        batch: images in one network call.
        stops: asked before a new row whether to stop.
        max_passes: settings of more passes are left out.
    """

    def __init__(
        self,
        model: Model,
        networks: Sequence[FeatureNetwork],
        results: Results,
        *,
        n: int,
        seed: int,
        batch: int,
        stops: Callable[[], bool] = lambda: False,
        max_passes: int | None = None,
    ) -> None:
        self.model, self.networks, self.results = model, networks, results
        self.n, self.seed, self.batch, self.stops, self.max_passes = n, seed, batch, stops, max_passes
        self.device = device_name(model.device)

    def fits(self, settings: Settings) -> bool:
        """Whether the settings cost no more passes than allowed."""
        return self.max_passes is None or self._passes(settings) <= self.max_passes

    def _passes(self, settings: Settings) -> int:
        return passes({"settings": asdict(settings), "calls": settings.calls(self.model.grid[0] * self.model.grid[1])})

    def measure(self, settings: Settings) -> Row | None:
        """The row of settings: a saved one, or a new one; None where it is time to stop."""
        settings = canonical(settings)
        task = {"settings": asdict(settings), "n": self.n}
        if saved := self.results.of(**task):
            return saved[0]
        if self.stops():
            return None
        seconds = 0.0
        labels = self.model.labels(self.n, None)

        def sampled() -> Iterator[Tensor]:
            nonlocal seconds
            step = self.batch * max(1, 1000 // self.batch)
            for first in range(0, self.n, step):
                start = time.perf_counter()
                tokens = self.model.sample_tokens(
                    labels[first : first + step], seed=self.seed, settings=settings, first=first, batch=self.batch
                )
                images = self.decode(tokens)
                seconds += time.perf_counter() - start
                yield images

        known = np.array(labels if self.model.class_names else [-1] * self.n)
        found = figures(self.networks, sampled(), known, self.model.class_names)
        row = {
            "task": task,
            "calls": settings.calls(self.model.grid[0] * self.model.grid[1]),
            "passes": self._passes(settings),
            "figures": found,
            "seconds_per_image": round(seconds / self.n, 6),
            "device": self.device,
            "versions": versions(),
        }
        self.results.add(row)
        return row

    def decode(self, tokens: Tensor) -> Tensor:
        """Images of token grids, in batches that fit in memory."""
        height, width = self.model.image_size
        return self.model.decode(tokens, batch=max(1, min(self.batch, DECODED_PIXELS // (height * width))))

    def bound(self, kind: str, source: str, images: Images) -> Row:
        """The row of real images, or of their reconstructions, for ``kind`` "real" or "reconstructions"."""
        task = {"bound": kind, "of": source, "n": len(images), "images_sha256": images.sha256()}
        if saved := self.results.of(**task):
            return saved[0]
        size = max(1, min(self.batch, 64))

        def parts() -> Iterator[Tensor]:
            for start in range(0, len(images), 960):
                pixels = images.pixels[start : start + 960]
                if kind == "real":
                    yield pixels
                    continue
                tokenizer, device = self.model.tokenizer, self.model.device
                tokens = [encode_batch(tokenizer, list(batch), size, device) for batch in pixels.split(size)]
                yield self.decode(torch.cat(tokens))

        found = figures(self.networks, parts(), images.labels, images.class_names)
        row = {"task": task, "figures": found, "device": self.device, "versions": versions()}
        self.results.add(row)
        return row

    def warm_up(self, settings: Settings) -> None:
        """One batch without measuring: the first call on a GPU loads its kernels."""
        labels = [self.model.null_label] * self.batch
        self.decode(self.model.sample_tokens(labels, settings=settings, batch=self.batch))


def device_name(device: torch.device) -> str:
    """``cpu`` with its threads, or the GPU's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device}, {torch.get_num_threads()} threads"


def default_batch(model: Model) -> int:
    """Images in one call: on a GPU more than `Model.sample` takes, because measuring needs no reproducible batches."""
    if model.device.type != "cuda":
        return model.kernel_batch
    return max(model.kernel_batch, min(1000, 64_000 // (model.grid[0] * model.grid[1])))


@click.command(help=__doc__.replace("\n\n    python", "\n\n\b\n    python"))
@click.argument("model_name", metavar="MODEL")
@click.argument("reference", type=click.Path(path_type=Path))
@click.argument("more", nargs=-1, metavar="[NAME=VALUE,...]")
@click.option("--features", multiple=True, required=True, help="Feature network, as for `ggm-image fid`; repeatable.")
@click.option("-n", "count", default=2000, show_default=True, help="Images for each row.")
@click.option("--preset", default="fast", show_default=True, help="Settings to start from.")
@click.option("--grid", multiple=True, help="NAME=VALUE,VALUE..., or a YAML file of lists; repeatable.")
@click.option("--search", type=click.IntRange(1), metavar="ROWS", help="Vary one option at a time, at most ROWS rows.")
@click.option("--min-recall", default=0.0, show_default=True, help="Recall that the best must have.")
@click.option("--max-passes", type=click.IntRange(1), help="Leave out settings of more network passes.")
@click.option("--max-minutes", type=float, help="Start no row after this time.")
@click.option("--write", metavar="PRESET", help="Print the best as this preset, a line for the YAML of a model.")
@click.option("--reference-count", type=click.IntRange(6), help="Reference images, in equal share; all by default.")
@click.option("--train-images", type=click.Path(path_type=Path), help="Training images, for the bounds.")
@click.option("--reconstructions-of", type=click.Choice(SOURCES), help="Images of the bounds.  [train, where given]")
@click.option("--real", type=click.IntRange(0), help="Real images of their bound; 0 for none.  [default: -n]")
@click.option("--reconstructions", type=click.IntRange(0), help="Images that are reconstructed.  [default: -n]")
@click.option("--statistics", type=click.Path(path_type=Path), help="Folder for features of the reference.")
@click.option("--pack", type=click.Path(path_type=Path), help="Write the real images here as .npz, and stop.")
@click.option("--seed", default=0, show_default=True)
@click.option("--batch", type=click.IntRange(1), help="Images in one network call.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the network: slower to start, then faster.")
@click.option("--out", default="calibration", show_default=True, help="Path of the outputs, without suffix.")
@click.option("--device", default="auto", show_default=True)
def main(model_name: str, reference: Path, more: tuple[str, ...], **options: Any) -> None:
    given, began = SimpleNamespace(**options), time.monotonic()
    if given.count <= DENSITY_K:
        raise UserError(f"-n must be more than {DENSITY_K}", given.count, "use some thousands")
    values = parse_grid([*given.grid, *more])
    find_model(model_name).check_modality("image")
    model = load_model(model_name, device=str(choose_device(given.device)), compiled=given.compiled)
    start = canonical(model.settings(given.preset))
    source = given.reconstructions_of or ("train" if given.train_images else None)
    counts = {"real": given.count if given.real is None else given.real}
    counts["reconstructions"] = given.count if given.reconstructions is None else given.reconstructions
    if source == "reference":
        counts["real"] = 0  # their distance to themselves
    height, width = model.image_size
    if height != width:
        raise UserError("the model's images must be square", f"{width} x {height}", "use a square model")
    most = max(counts.values()) if source else 0
    source = source if most else None
    images, others = open_images(reference, given.train_images, source, width, given.reference_count, most)
    if given.pack is not None:
        pack_images(given.pack, images, others, source)
        return
    if len(images) <= DENSITY_K:
        raise UserError(f"the reference needs more than {DENSITY_K} images", len(images), "give some thousands")
    work = make_calibration(model, images, given, began)
    bounds = []
    for kind, number in counts.items():
        if source is not None and others is not None and number:
            bounds.append(work.bound(kind, source, others.picked(equal_share(others.labels, number, source))))
    if model.device.type == "cuda":
        work.warm_up(start)
    head = f"{len(images)} reference images, seed {given.seed}, {work.device}, {work.batch} images in a call."
    measure_and_report(work, start, values, given, head, bounds)


def make_calibration(model: Model, images: Images, given: SimpleNamespace, began: float) -> Calibration:
    """The calibration that the options ask for, with its feature networks and its file of results."""
    networks = [
        FeatureNetwork(load_extractor(name, device=model.device), images, statistics=given.statistics)
        for name in given.features
    ]
    few = [f"{n.extractor.title} {n.extractor.dimension}" for n in networks if given.count <= n.extractor.dimension]
    if few:
        say(f"note: {given.count} images for as many features or more ({', '.join(few)}): distances are mostly bias")
    batch = given.batch or default_batch(model)
    protocol = {
        "model": model.name,
        **model.identity,
        "batch": batch,
        "features": [network.extractor.identity() for network in networks],
        "reference_sha256": images.sha256(),
        "reference_count": len(images),
        "seed": given.seed,
        "device": model.device.type,
    }
    return Calibration(
        model,
        networks,
        Results(Path(f"{given.out}.json"), protocol),
        n=given.count,
        seed=given.seed,
        batch=batch,
        stops=lambda: given.max_minutes is not None and time.monotonic() - began > 60 * given.max_minutes,
        max_passes=given.max_passes,
    )


def measure_and_report(
    work: Calibration,
    start: Settings,
    values: dict[str, list[Any]],
    given: SimpleNamespace,
    head: str,
    bounds: Sequence[Row],
) -> None:
    """Measure the settings, with a table that grows row by row, and print the best."""
    goal, titles = Goal(given.min_recall, given.max_passes), [network.extractor.title for network in work.networks]
    above, rows = bounds_table(titles, bounds), list[Row]()
    click.echo(above, nl=False)

    def show(row: Row) -> None:
        rows.append(row)
        click.echo(setting_line(row))
        write_text(f"{given.out}.md", f"{head}\n\n{above}{table(titles, rows, goal)}")

    measure_all(work, start, values, goal, given.search, show)
    if not rows:
        raise UserError("no settings were measured", f"{given.max_minutes} minutes", "give more --max-minutes")
    best = min(rows, key=goal.key)
    click.echo(f"best of {len(rows)}: {setting_line(best)}")
    if goal.key(best)[0] == 1:
        say(f"note: no row has a recall of {given.min_recall:g}: the best is the one of the highest recall")
    if goal.key(best)[0] == 2:
        say(f"note: no row has at most {given.max_passes} passes: the best is the one of the fewest")
    if given.write is not None:
        click.echo(preset_line(given.write, Settings.of(best["task"]["settings"])))


def measure_all(
    work: Calibration,
    start: Settings,
    grid: dict[str, list[Any]],
    goal: Goal,
    budget: int | None,
    show: Callable[[Row], None],
) -> None:
    """Measure the preset and the grid or the search, as far as time allows; ``show`` is called with every row."""

    def measured(settings: Settings) -> Row | None:
        row = work.measure(settings)
        if row is None:
            say("note: the time is over: the other settings were not measured")
        else:
            show(row)
        return row

    if budget is not None:
        coordinate_search(start, grid, measured, goal, budget, work.fits)
        return
    others = [settings for settings in every_combination(grid, start) if settings != start]
    wanted = [start, *filter(work.fits, others)]
    if left_out := 1 + len(others) - len(wanted):
        say(f"note: left out {left_out} settings of more than {work.max_passes} passes")
    for settings in wanted:
        if measured(settings) is None:
            return


def open_images(
    reference: Path, train: Path | None, source: str | None, size: int, reference_count: int | None, most: int
) -> tuple[Images, Images | None]:
    """The reference, and the images of the bounds, ``most`` of them, where there is a ``source``."""
    if source == "train":
        if train is None:
            raise UserError("bounds of training images need them", "no --train-images", "add --train-images")
        return load_images(reference, size, reference_count), load_images(train, size, most)
    if source == "held-out":
        if reference_count is None:
            raise UserError("held-out images need a part of the reference", "all", "add --reference-count")
        both = load_images(reference, size, reference_count + most)
        mine = equal_share(both.labels, reference_count, str(reference))
        return both.picked(mine), both.picked(sorted(set(range(len(both))) - set(mine)))
    images = load_images(reference, size, reference_count)
    return images, images if source == "reference" else None


def pack_images(folder: Path, images: Images, others: Images | None, source: str | None) -> None:
    """Write the real images as ``reference.npz`` and ``train.npz``, to be measured where their files are not."""
    if source == "held-out":
        raise UserError("held-out images are packed with the reference", source, "pack REFERENCE alone")
    packed = {"reference": images} | ({"train": others} if others is not None and source == "train" else {})
    for name, those in packed.items():
        those.save(folder / f"{name}.npz")
        click.echo(f"{folder / name}.npz: {len(those)} images")


if __name__ == "__main__":
    raise SystemExit(run(main))
