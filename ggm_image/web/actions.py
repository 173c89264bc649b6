"""What the page's buttons do, with the pipelines alone; nothing here knows the page's layout."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image

from ggm_image.errors import UserError
from ggm_image.image.extension import Extension
from ggm_image.image.io import to_pil
from ggm_image.image.masks import load_mask
from ggm_image.image.visualize import heat_map
from ggm_image.pipelines.call_counter import CallCounter
from ggm_image.pipelines.classes import turns
from ggm_image.pipelines.guide import STRENGTH, Guide, check_strength
from ggm_image.pipelines.image import Model
from ggm_image.pipelines.inpaint import warn_of_detail
from ggm_image.pipelines.load import load_model
from ggm_image.pipelines.model_folder import NetworkFolder, find_model, shipped_models
from ggm_image.pipelines.trajectory import partial_images
from ggm_image.sampler.settings import check_count
from ggm_image.web.images import check_pixels, pack_inpainted, pack_samples, painted_mask
from ggm_image.web.jobs import Finished, Jobs, Report, Step

MOST_SAMPLES = 64
MOST_RESULTS = 8
MOST_CALLS = 20_000
"""Network calls of one job; a larger one is for the command line."""
PREVIEW_SECONDS = 0.4
"""Least time between two previews of unfinished images."""


@dataclass(frozen=True)
class Images:
    """Images and the file to download them from.

    Attributes:
        download: a zip of them with their manifest.
        note: what was done, in a sentence.
    """

    images: list[Image.Image]
    download: Path
    note: str


class Actions:
    """The models of a page and what can be done with them; shared by all sessions.

    Args:
        model: name, folder or repository of the model that is shown first; the shipped ones can be chosen too.
    """

    def __init__(self, model: str, *, device: str | None = None, cache: Path) -> None:
        first = find_model(model)
        first.check_weights()
        self.device, self.cache, self.jobs = device, cache, Jobs()
        shipped = [m for m in shipped_models() if m.modality == "image" and m.weights.is_file()]
        self._sources = {first.name: model, **{m.name: str(m.folder) for m in shipped}}
        self._sources[first.name] = model
        self._loaded: dict[str, Model] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """Names of the models, the first one first."""
        return list(self._sources)

    def describe(self, name: str) -> NetworkFolder:
        """What is known of a model without loading it."""
        return find_model(self._source(name))

    def model(self, name: str) -> Model:
        """A model, loaded at its first use."""
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = load_model(self._source(name), device=self.device)
            return self._loaded[name]

    def _source(self, name: str) -> str:
        if name not in self._sources:
            raise UserError("the page has no such model", f"got {name!r}", f"choose one of {', '.join(self.names)}")
        return self._sources[name]

    def sample(
        self,
        key: str,
        name: str,
        classes: Sequence[str],
        count: Any,
        preset: str,
        guidance: float | None,
        seed: Any,
        guide: Image.Image | None = None,
        strength: Any = STRENGTH,
    ) -> Iterator[Step | Finished]:
        """Sample images; every preview is the list of the unfinished ones.

        Args:
            key: of the job, see `Jobs.run`.
            name: of the model.
            classes: that take turns. Where empty: all of the model's, or no class with a guide.
            count: how many images.
            preset: of the model.
            guidance: scale; the preset's where None.
            seed: any integer.
            guide: an image that the samples follow, see `Model.sample`.
            strength: how closely they follow it.

        Yields:
            Steps, and `Finished` with `Images`.

        Raises:
            UserError: for a value out of range, or a guide that is transparent everywhere.
        """
        count = check_count(_whole(count), "the number of images", least=1, most=MOST_SAMPLES)
        found = self.describe(name)
        strength = check_strength(strength)
        settings = found.settings(preset, guidance=guidance)
        if guide is not None and not classes:
            settings = replace(settings, guidance=1.0)
        calls = settings.calls(found.network.grid[0] * found.network.grid[1])

        def work(report: Report) -> Images:
            model, limited = self.model(name), _limited(report)
            labels = turns([model.label(c) for c in classes], range(count)) if classes else None
            rows, observation = model.labels(count, labels), None
            encoded: Guide | None = None
            if guide is not None:
                encoded = model.encode_guide(guide, strength)
                observation = encoded.observation.expand(count, -1, -1)
                rows = rows if classes else [model.null_label] * count
            # Progress counts network calls of all batches; a preview decodes images, so it is not sent for every call.
            batches = -(-count // model.kernel_batch)
            counter = CallCounter(limited, batches * calls)
            finished: list[Image.Image] = []
            shown_at = 0.0

            def callback(t: int, tokens: Any) -> None:
                nonlocal shown_at
                counter(t, tokens)
                if t == 0 or time.monotonic() - shown_at > PREVIEW_SECONDS:
                    unfinished = [to_pil(image) for image in partial_images(model, tokens)]
                    report(counter.done, counter.total, [*finished, *unfinished])
                    shown_at = time.monotonic()
                    if t == 0:
                        finished.extend(unfinished)

            tokens = model.sample_tokens(rows, seed=seed, settings=settings, callback=callback, observation=observation)
            images = [to_pil(image) for image in model.decode(tokens)]
            manifest = model.manifest(count, classes=labels, seed=seed, settings=settings, guide=encoded)
            download = pack_samples(images, manifest, self.cache)
            return Images(images, download, f"{count} images, seed {seed}, {calls} network calls each.")

        seed = _whole(seed)
        return self.jobs.run(key, work)

    def inpaint(
        self,
        key: str,
        name: str,
        image: Image.Image | None,
        layers: Sequence[Image.Image],
        class_name: str | None,
        count: Any,
        preset: str,
        guidance: float | None,
        seed: Any,
        *,
        extend: Sequence[Any] = (0, 0, 0, 0),
        dilate: Any = 0,
        feather: Any = 0,
    ) -> Iterator[Step | Finished]:
        """Inpaint what is painted in the editor's layers, and what is added at the sides.

        Args:
            key, name, count, preset, guidance, seed: as in `sample`.
            image: as it was opened; known pixels of the results are its pixels, bit for bit.
            layers: of the editor, of any size: a mask of another size is stretched.
            class_name: what the image shows; no class where None.
            extend: pixels to add at the left, top, right and bottom.
            dilate, feather: as in `Model.inpaint`.

        Yields:
            Steps, and `Finished` with `Images`.
        """
        if image is None:
            raise UserError("there is no image to inpaint", "none was opened", "open one, or click a sample")
        count = check_count(_whole(count), "the number of results", least=1, most=MOST_RESULTS)
        dilate = check_count(_whole(dilate), "dilate", most=1024)
        feather = check_count(_whole(feather), "feather", most=1024)
        sides = Extension(*(check_count(_whole(side), "pixels to add") for side in extend))
        opened, hole = _image_and_hole(image, layers, sides)
        settings = self.describe(name).settings(preset, guidance=guidance if class_name else None)
        if class_name is None:
            settings = replace(settings, guidance=1.0)
        seed = _whole(seed)

        def work(report: Report) -> Images:
            model = self.model(name)  # loaded here, as a job, so that the page answers at once
            label = None if class_name is None else model.label(class_name)
            warning = warn_of_detail(model.plan_inpainting(hole), name, model.image_size)
            warning = f"{warning[:1].upper()}{warning[1:]}." if warning else ""
            results = model.inpaint(
                opened,
                hole,
                n=count,
                classes=label,
                seed=seed,
                settings=settings,
                dilate=dilate,
                feather=feather,
                on_progress=_limited(report, warning),
            )
            manifest = model.manifest(count, classes=label, seed=seed, settings=settings) | {
                "classes": class_name,
                "kernel_batch": model.paint_batch,
                "extend": asdict(sides),
                "dilate": dilate,
                "feather": feather,
                "size": list(opened.size),
                "hole_pixels": int(hole.sum()),
            }
            download = pack_inpainted(results, manifest, self.cache)
            note = f"{hole.mean():.1%} of {opened.width} x {opened.height} pixels inpainted, seed {seed}."
            note = f"{note} {warning}".rstrip()
            return Images(results, download, note)

        return self.jobs.run(key, work)

    def signal(
        self, key: str, name: str, image: Image.Image | None, level: float, class_name: str | None
    ) -> Iterator[Step | Finished]:
        """The heat map of an image; arguments as in `inpaint` and `Model.signal`."""
        if image is None:
            raise UserError("there is no image to look at", "none was opened", "open one, or click a sample")

        def work(report: Report) -> Image.Image:
            model = self.model(name)
            probability = model.signal(image, level=level, classes=class_name, on_progress=_limited(report))
            return heat_map(image, probability, model.tokenizer.downscale)

        return self.jobs.run(key, work)


def _image_and_hole(
    image: Image.Image, layers: Sequence[Image.Image], sides: Extension
) -> tuple[Image.Image, Bool[np.ndarray, "h w"]]:
    """The image with pixels added at its sides, and True where it is to be inpainted."""
    added = any(asdict(sides).values())
    check_pixels(image.width + sides.left + sides.right, image.height + sides.top + sides.bottom)
    mask = painted_mask(layers)
    if mask is None and not added:
        fix = "paint over the part to replace, or add pixels at a side"
        raise UserError("nothing is to be inpainted", "the mask is empty", fix)
    return load_mask(image, mask, extend_by=sides if added else None, fit=True)


def _limited(report: Report, note: str = "") -> Callable[[int, int], None]:
    """The report function, which refuses a job that is too long; ``note`` is shown with every step."""

    def limited(done: int, total: int) -> None:
        if total > MOST_CALLS:
            raise UserError(
                f"the page runs at most {MOST_CALLS:,} network calls in one job",
                f"this one needs {total:,}",
                "paint a smaller part, choose the preset fast, or use the command line",
            )
        report(done, total, note=note)

    return limited


def _whole(value: Any) -> Any:
    """A whole number as an int: the browser sends 3 as 3.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
