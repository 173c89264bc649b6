"""A plugin as a user writes it: a sampler, curve, site order, optimizer, tokenizer family and metric.

Importing the module registers them. The examples in CONTRIBUTING.md are of this kind.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ggm_image.metrics import METRICS, Metric
from ggm_image.metrics.evaluate import MetricJob
from ggm_image.metrics.feature_file import Features
from ggm_image.sampler.base import Call, Denoiser, Plan, SamplingRun, run_by_pattern, start_run
from ggm_image.sampler.registry import SamplerEntry, register
from ggm_image.sampler.settings import Settings
from ggm_image.schedule import CURVES, ORDERS, SiteOrder
from ggm_image.tokenizers.base import Family, Tokenizer
from ggm_image.tokenizers.vq.families import FAMILIES
from ggm_image.training.optim import OPTIMIZERS, OptimizerKind, OptimizerSettings


def sample_by_settings(
    denoiser: Denoiser, settings: Settings, batch: int, *, height: int, width: int, codebook_size: int, **rest: Any
) -> Tensor:
    """Row by row, `settings.block` sites a call, as a language model would."""

    def plan(job: SamplingRun, unknown: Tensor) -> Plan:
        sites, uniforms = unknown.nonzero().squeeze(1), job.uniforms(height * width)
        calls = [Call(sites=part, uniforms=uniforms[:, part], filled=0.0) for part in sites.split(settings.block)]
        return Plan(job.masked_tokens(), None, calls)

    given = [rest.get(name) for name in ("labels", "known", "noise", "generator", "callback", "device")]
    return run_by_pattern(start_run(denoiser, batch, height * width, codebook_size, *given), plan)


def columns(height: int, width: int, generator: torch.Generator | None = None) -> Tensor:
    """Column by column, from the left."""
    return torch.arange(height * width).view(height, width).t().flatten()


def sgd(module: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=settings.learning_rate)


@dataclass(kw_only=True)
class GreyConfig:
    """So many equal steps from black to white for each cell of 4 x 4 pixels."""

    codebook_size: int = 16
    downscale: int = 4
    image_size: int = 16


class Grey(Tokenizer):
    """The mean grey of each cell."""

    def __init__(self, config: GreyConfig, *, name: str = "grey", sha256: str = "") -> None:
        super().__init__()
        self.name, self.sha256 = name, sha256
        self.codebook_size, self.downscale = config.codebook_size, config.downscale
        self.image_size = config.image_size
        self.levels = nn.Parameter(torch.linspace(-1, 1, config.codebook_size))

    def encode_indices(self, images: Tensor) -> Tensor:
        grey = torch.nn.functional.avg_pool2d(images.mean(dim=1), self.downscale)
        return (grey[..., None] - self.levels).abs().argmin(dim=-1)

    def decode_indices(self, tokens: Tensor) -> Tensor:
        cells = self.levels[tokens].repeat_interleave(self.downscale, 1).repeat_interleave(self.downscale, 2)
        return cells[:, None].expand(-1, 3, -1, -1)


def our_names(names: Iterable[str]) -> dict[str, str]:
    return {name: name for name in names if name == "levels"}


def from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    return {"codebook_size": shapes["levels"][0]} if set(shapes) == {"levels"} else None


def mean_gap(generated: Features, reference: Features, job: MetricJob) -> dict[str, Any]:
    """Euclidean distance of the mean features."""
    means = [side.matrix[:].mean(axis=0) for side in (generated, reference)]
    return {"mean_gap": float(((means[0] - means[1]) ** 2).sum() ** 0.5)}


register(SamplerEntry(name="raster", module=__name__, summary="row by row", unused=frozenset({"first_block"})))
CURVES["square"] = lambda x: (1 - x) ** 2
ORDERS["columns"] = SiteOrder(f"{__name__}:columns")
OPTIMIZERS["sgd"] = OptimizerKind(sgd, shards=True)
FAMILIES["grey"] = Family(name="grey", config=GreyConfig, network=Grey, our_names=our_names, from_shapes=from_shapes)
METRICS["mean-gap"] = Metric(f"{__name__}:mean_gap", "distance of the mean features", ("mean_gap",))
