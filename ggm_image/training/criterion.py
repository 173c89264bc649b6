"""The network and its loss as one module."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ggm_image import objective
from ggm_image.network import Transformer
from ggm_image.training.config import ObjectiveConfig


class Criterion(nn.Module):
    """The network and its loss as one module: a compiled head never writes its logits in full precision."""

    def __init__(self, network: Transformer, config: ObjectiveConfig, noise: Float[Tensor, " v"]) -> None:
        super().__init__()
        self.network, self.config, self.noise = network, config, noise
        self._compiled = False

    def compile_head(self) -> None:
        """Compile what follows the blocks; not for "binary-sampled", which compares samples in double precision."""
        if self.config.name != "binary-sampled":
            self._compiled = True
            self.head = torch.compile(self.head)  # type: ignore[method-assign]

    def forward(
        self,
        tokens: Int[Tensor, "b l"],
        levels: Float[Tensor, "b l"],
        sites: Int[Tensor, " k"],
        labels: Int[Tensor, " b"],
        x_0: Int[Tensor, "b k"],
        level: Float[Tensor, "b k"],
        *uniforms: Float[Tensor, "b k 3"],
    ) -> Float[Tensor, ""]:
        """Mean loss over the queried sites; ``x_0`` and ``level`` are those of the sites, before the mask.

        ``uniforms`` are the random numbers of "binary-sampled"; other losses need none.
        """
        x = self.network.features(tokens, levels, sites, labels)  # (b, k, d)
        rows = (x.flatten(0, 1), x_0.flatten(), level.flatten())
        if self._compiled:
            for value in rows:
                torch._dynamo.maybe_mark_dynamic(value, 0)
        return self.head(*rows, *(u.flatten(0, 1) for u in uniforms))

    def head(
        self,
        features: Float[Tensor, "n d"],
        x_0: Int[Tensor, " n"],
        level: Float[Tensor, " n"],
        uniforms: Float[Tensor, "n 3"] | None = None,
    ) -> Float[Tensor, ""]:
        """Logits and loss, where only ``n`` varies from call to call."""
        sampled = self.config.name == "binary-sampled"
        return objective.loss(
            self.config.name,
            self.network.logits(features),
            x_0,
            level,
            self.config.keep if sampled else None,
            self.noise,
            contrast=self.config.contrast,
            uniforms=uniforms,
        )
