"""Parameter groups, the learning rate, and the average of the weights."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ggm_image.training.sharded_state import own


class EMA:
    """Moving average of a module's state, in float32; integer entries are copied.

    decay_n = min(decay, (1 + n) / (10 + n)) after n steps, so that the first weights are soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the module's state after its ``step``-th step."""
        live = module.state_dict()
        names = [name for name, value in self.state.items() if value.is_floating_point()]
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([own(self.state[n]) for n in names], [own(live[n]) for n in names], weight)
        for name in self.state.keys() - names:
            self.state[name].copy_(live[name])

    def load(self, state: Mapping[str, Tensor]) -> None:
        for name, value in self.state.items():
            value.copy_(state[name])


NOT_DECAYED = ("table", "bias")
"""Last parts of the names of parameters that have no weight decay, whatever their shape."""


def decays(module: nn.Module, name: str) -> bool:
    """Whether a parameter has weight decay: every matrix that multiplies activations, and every kernel.

    That is all with two dimensions or more, but for embeddings, whose rows are looked up (a head that is tied to one
    included), and tables of shifts, scales and gates, which are vectors side by side.
    """
    parent, _, last = name.rpartition(".")
    embedding = isinstance(module.get_submodule(parent), nn.Embedding)
    return module.get_parameter(name).dim() >= 2 and not embedding and last not in NOT_DECAYED


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups for an optimizer: those that decay, see `decays`, and those that do not."""
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    return [
        {"params": [p for name, p in trained if decays(module, name)], "weight_decay": weight_decay},
        {"params": [p for name, p in trained if not decays(module, name)], "weight_decay": 0.0},
    ]


def regrouped(state: Mapping[str, Any], module: nn.Module) -> dict[str, Any]:
    """An optimizer's state in the groups of `parameter_groups`, if an earlier version wrote it in its own.

    Until version 0.1.0 only the weights of layers decayed, so a head of its own, a bare parameter, did not.
    """
    trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    ours = [[name for name in trained if decays(module, name)], [name for name in trained if not decays(module, name)]]
    layers = {f"{name}.weight" for name, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    before = [[name for name in trained if name in layers], [name for name in trained if name not in layers]]
    sizes = [len(group["params"]) for group in state["param_groups"]]
    if sizes == list(map(len, ours)) or sizes != list(map(len, before)):
        return dict(state)  # as it should be; or of neither, which the optimizer refuses
    number = {name: k for k, name in enumerate(before[0] + before[1])}
    order = [number[name] for name in ours[0] + ours[1]]
    moved = {k: state["state"][old] for k, old in enumerate(order) if old in state["state"]}
    groups, start = [], 0
    for group, names in zip(state["param_groups"], ours, strict=True):
        groups.append({**group, "params": list(range(start, start + len(names)))})
        start += len(names)
    return {"state": moved, "param_groups": groups}


def learning_rate(peak: float, *, step: int, warmup_steps: int, progress: float, final_share: float) -> float:
    """Linear warm-up over steps times a cosine of the share ``progress`` in [0, 1] of the run that is done."""
    warm = min(1.0, (step + 1) / max(1, warmup_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * warm * (final_share + (1 - final_share) * cosine)
