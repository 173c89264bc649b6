"""The one way from a pipeline to its network: a plain call, or a CUDA graph where that is faster."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial

import torch
from torch import Tensor
from torch.nn import Parameter

from ggm_image.network import Transformer
from ggm_image.runtime.cuda_graph import CudaGraphs


class NetworkCalls:
    """Calls a network, see `ggm_image.runtime.cuda_graph`.

    Recorded is everything up to the last block. The head stays outside: its logits are many times larger than what
    goes into it, and every graph would keep a copy of them.

    Args:
        cuda_graphs: None for graphs of shapes that are called often, on CUDA; True for graphs of every shape; False for
            plain calls.

    Attributes:
        graphs: None where all calls are plain.
    """

    def __init__(self, cuda_graphs: bool | None = None) -> None:
        self.graphs = None if cuda_graphs is False else CudaGraphs(at_once=bool(cuda_graphs))
        self._watched: tuple[Transformer, list[tuple[dict[str, Parameter | None], str]]] | None = None

    def __call__(
        self,
        network: Callable[..., Tensor],
        tokens: Tensor,
        levels: Tensor,
        sites: Tensor,
        labels: Tensor | None,
        grid: tuple[int, int],
    ) -> Tensor:
        """``network(tokens, levels, sites, labels, grid)``, arguments as of `Transformer.forward`."""
        graphs = self.graphs
        if graphs is None or not isinstance(network, Transformer) or not graphs.applies_to(tokens.device):
            return network(tokens, levels, sites, labels, grid)
        if torch.is_autocast_enabled("cuda") and network.site.weight.dtype == torch.float32:
            return network(tokens, levels, sites, labels, grid)  # autocast caches the weights that it converts
        return graphs(
            partial(network.features, grid=grid),
            (tokens, levels, sites, labels),
            read=network.logits,
            setting=grid,
            sources=self._sources(network),
        )

    def clear(self) -> None:
        """Drop all graphs."""
        self._watched = None
        if self.graphs is not None:
            self.graphs.clear()

    def _sources(self, network: Transformer) -> Hashable:
        """Which code computes on which memory: weights may be written to, but not be replaced, below a graph."""
        watched = self._watched
        if watched is None or watched[0] is not network:  # walking through the modules takes longer than all the rest
            slots = [(module._parameters, name) for module in network.modules() for name in module._parameters]
            self._watched = watched = network, slots
        weights = [parameters[name] for parameters, name in watched[1]]
        return id(network), network.is_compiled, *(None if w is None else w.data_ptr() for w in weights)
