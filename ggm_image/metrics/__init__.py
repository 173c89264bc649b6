"""Scores of images: feature networks, Fréchet distance, class accuracy, PSNR and SSIM.

The metrics of two sets of features stand in a registry. A new one is one function and one entry; nothing in this file
imports torch.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ggm_image.errors import UserError, suggest


@dataclass(frozen=True)
class Metric:
    """A metric that `evaluate` and ``ggm-image fid --metrics`` can name.

    Attributes:
        function: as ``module:name``; imported when it is first used. It is called as
            function(generated, reference, job) with two `feature_file.Features` and a `evaluate.MetricJob`, and returns
            some of its ``figures`` as a dict for JSON.
        figures: its entries in the report, None where the metric was not asked for.
    """

    function: str
    summary: str
    figures: tuple[str, ...]

    def load(self) -> Callable[..., dict[str, Any]]:
        """Its function; imports the module."""
        module, _, name = self.function.partition(":")
        found: Callable[..., dict[str, Any]] = getattr(import_module(module), name)
        return found


METRICS: dict[str, Metric] = {
    "fid": Metric("ggm_image.metrics.evaluate:fid", "Fréchet distance", ("value", "bootstrap")),
    "kid": Metric("ggm_image.metrics.evaluate:kid", "kernel distance", ("kid",)),
    "prdc": Metric(
        "ggm_image.metrics.evaluate:precision_recall",
        "precision, recall, density and coverage, in time n^2",
        ("precision", "recall", "density", "coverage", "neighbours"),
    ),
}
DEFAULT_METRICS = ("fid", "kid", "prdc")


def find_metrics(names: Iterable[str]) -> dict[str, Metric]:
    """The metrics of these names, in the order of the registry."""
    asked = list(names)
    if not asked:
        raise UserError("no metrics were asked for", "none", f"choose from {', '.join(METRICS)}")
    for name in asked:
        if name not in METRICS:
            *others, last = METRICS
            fix = suggest(name, METRICS, "e.g. fid,kid")
            raise UserError(f"metrics must be of {', '.join(others)} and {last}", name, fix)
    return {name: metric for name, metric in METRICS.items() if name in asked}
