"""Optimizers and learning-rate schedules by name, parameter groups, and the average of the weights.

A new optimizer is one entry of `OPTIMIZERS`, a new schedule one of `SCHEDULES`; both are then values of
``train.optimizer`` and ``train.schedule``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ggm_image.errors import UserError
from ggm_image.training.sharded_state import own


class EMA:
    """Moving average of a module's state, in float32; integer entries are copied.

    decay_n = min(decay, (1 + n) / (10 + n)) after n steps, so that the first weights are soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {name: value.detach().clone() for name, value in module.state_dict().items()}
        self._module: nn.Module | None = None
        self._live: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the module's state after its ``step``-th step."""
        live = self._tensors(module)
        names = [name for name, value in self.state.items() if value.is_floating_point()]
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_([own(self.state[n]) for n in names], [own(live[n]) for n in names], weight)
        for name in self.state.keys() - names:
            self.state[name].copy_(live[name])

    def _tensors(self, module: nn.Module) -> dict[str, Tensor]:
        """The module's parameters and buffers by name, found at the first call: `state_dict` takes milliseconds."""
        if self._module is not module:
            found: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
            found |= module.named_buffers(remove_duplicate=False)
            self._module, self._live = module, {name: found[name] for name in self.state}
        return self._live

    def load(self, state: Mapping[str, Tensor]) -> None:
        for name, value in self.state.items():
            value.copy_(state[name])


NOT_DECAYED = ("table", "bias")
"""Last parts of the names of parameters that have no weight decay, regardless of their shape."""


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
    trained = _trained(module)
    return [
        {"params": [p for name, p in trained if decays(module, name)], "weight_decay": weight_decay},
        {"params": [p for name, p in trained if not decays(module, name)], "weight_decay": 0.0},
    ]


def is_hidden(module: nn.Module, name: str) -> bool:
    """Whether a parameter is a hidden matrix or kernel: it decays, see `decays`, and lies in a list of blocks.

    What is before the first block and after the last, embeddings and heads above all, is not hidden.
    """
    parents = name.split(".")[:-1]
    inside = (module.get_submodule(".".join(parents[:k])) for k in range(1, len(parents)))
    return any(isinstance(parent, nn.ModuleList) for parent in inside) and decays(module, name)


def _trained(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """What an optimizer is made with.

    Attributes:
        learning_rate: of the first step; the trainer sets that of each later one.
        weight_decay: on what `decays`; None for no decay and a single group.
        fused: use the fused kernel, on a CPU or on CUDA.
        bf16: compute the orthogonalisation of Muon in bfloat16, where the device has it in hardware.
    """

    learning_rate: float
    weight_decay: float | None
    betas: tuple[float, float]
    fused: bool = False
    bf16: bool = False


@dataclass(frozen=True)
class OptimizerKind:
    """An entry of `OPTIMIZERS`.

    Attributes:
        shards: whether it works on rows of a parameter, as FSDP has them.
    """

    make: Callable[[nn.Module, OptimizerSettings], torch.optim.Optimizer]
    shards: bool = False


def make_optimizer(
    name: str, module: nn.Module, settings: OptimizerSettings, *, sharded: bool = False
) -> torch.optim.Optimizer:
    """The optimizer of a module's trained parameters.

    Args:
        module: whose parameters are trained where they require a gradient.
        sharded: whether the parameters are spread over processes (FSDP).

    Raises:
        UserError: an unknown name, or one that does not work on sharded parameters.
    """
    check_optimizer(name, sharded=sharded)
    return OPTIMIZERS[name].make(module, settings)


def check_optimizer(name: str, *, sharded: bool) -> None:
    """Raise UserError for an unknown optimizer, or one that does not work on parameters that FSDP has sharded."""
    if name not in OPTIMIZERS:
        raise UserError("unknown optimizer", name, f"choose one of {', '.join(OPTIMIZERS)}")
    if sharded and not OPTIMIZERS[name].shards:
        able = " or ".join(key for key, kind in OPTIMIZERS.items() if kind.shards)
        raise UserError(
            f"train.optimizer={name} needs whole matrices, which fsdp does not have",
            "train.strategy=fsdp",
            f"set train.strategy=ddp, or train.optimizer={able}",
        )


def _adamw(groups: Sequence[dict[str, Any]], settings: OptimizerSettings) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        list(groups),
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=0.0,  # the groups say
        fused=settings.fused or None,
    )


def _make_adamw(module: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    if settings.weight_decay is None:
        return _adamw([{"params": [p for _, p in _trained(module)]}], settings)
    return _adamw(parameter_groups(module, settings.weight_decay), settings)


NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic iteration, by Keller Jordan (kellerjordan.github.io/posts/muon)."""


ITERATIONS = 5
"""Of Newton and Schulz, in a step of Muon."""


def orthogonalise(
    updates: Float[Tensor, "n r c"], *, dtype: torch.dtype, steps: int = ITERATIONS
) -> Float[Tensor, "n r c"]:
    """The nearest matrices with orthonormal rows or columns, roughly: singular values end in about [0.7, 1.2].

    Args:
        updates: n matrices of one shape, computed together.
        dtype: of the products, bfloat16 or wider.
    """
    tall = updates.shape[1] > updates.shape[2]
    x = (updates.mT if tall else updates).to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # no singular value above 1
    a, b, c = NEWTON_SCHULZ
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(updates.dtype).contiguous()


class Muon(torch.optim.Optimizer):
    """Muon for hidden matrices, another optimizer for all other parameters.

    The momentum of each matrix is orthogonalised (arXiv 2502.16982), and scaled by 0.2 sqrt(max(rows, columns)), the
    typical size of AdamW's updates: one learning rate and one weight decay serve both. Kernels of convolutions count
    as matrices of one row an output channel. Equal to ``torch.optim.Muon(adjust_lr_fn="match_rms_adamw")``, which
    needs torch 2.9; here matrices of one shape are multiplied together, so a GPU gets few launches.

    Args:
        matrices: trained by Muon.
        others: optimizer of the other parameters; its groups become groups of this one.
        momentum: weight of the past in the moving average of gradients.
    """

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        others: torch.optim.Optimizer,
        *,
        lr: float,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        own_group = {
            "params": list(matrices), "muon": True, "lr": lr, "weight_decay": weight_decay, "momentum": momentum
        }  # fmt: skip
        super().__init__([own_group, *others.param_groups], {})
        self._others, self._dtype = others, dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # `load_state_dict` makes new groups and a new state, so both are handed on in every step
        self._others.state = self.state
        self._others.param_groups = [group for group in self.param_groups if not group.get("muon")]
        self._others.step()
        for group in self.param_groups:
            if group.get("muon"):
                self._step_matrices(group)
        return loss

    def _step_matrices(self, group: Mapping[str, Any]) -> None:
        shapes: dict[tuple[Any, ...], list[nn.Parameter]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                shapes.setdefault((parameter.shape, parameter.dtype, parameter.device), []).append(parameter)
        rate, momentum = group["lr"], group["momentum"]
        for parameters in shapes.values():
            weights: list[Tensor] = list(parameters)
            gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            averages = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
            torch._foreach_lerp_(averages, gradients, 1 - momentum)
            ahead = torch._foreach_lerp(gradients, averages, momentum)  # Nesterov
            update = orthogonalise(torch.stack([g.flatten(1) for g in ahead]), dtype=self._dtype)
            scale = 0.2 * math.sqrt(max(update.shape[1:]))
            torch._foreach_mul_(weights, 1 - rate * group["weight_decay"])
            shaped = [u.view(parameters[0].shape) for u in update]
            torch._foreach_add_(weights, shaped, alpha=-rate * scale)


def muon_flops(module: nn.Module) -> int:
    """Floating-point operations of the products in a step of Muon, which do not depend on the batch."""
    sides = [sorted((p.shape[0], p[0].numel())) for name, p in _trained(module) if is_hidden(module, name)]
    return sum(ITERATIONS * (4 * short**2 * long + 2 * short**3) for short, long in sides)


def _make_muon(module: nn.Module, settings: OptimizerSettings) -> torch.optim.Optimizer:
    decay, trained = settings.weight_decay or 0.0, _trained(module)
    matrices = [p for name, p in trained if is_hidden(module, name)]
    if not matrices:
        raise UserError("train.optimizer=muon needs hidden matrices", type(module).__name__, "use adamw")
    hidden = {id(p) for p in matrices}
    groups = parameter_groups(module, decay)
    rest = [group | {"params": [p for p in group["params"] if id(p) not in hidden]} for group in groups]
    return Muon(
        matrices,
        _adamw(rest, settings),
        lr=settings.learning_rate,
        weight_decay=decay,
        dtype=torch.bfloat16 if settings.bf16 else torch.float32,
    )


OPTIMIZERS: dict[str, OptimizerKind] = {
    "adamw": OptimizerKind(_make_adamw, shards=True),
    "muon": OptimizerKind(_make_muon),
}
"""Values of ``train.optimizer``."""


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


WARMUP_SHARE = 0.1
"""The largest share of a run that its warm-up takes."""


def _cosine(progress: float, final_share: float, decay_fraction: float) -> float:
    return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress))


def _wsd(progress: float, final_share: float, decay_fraction: float) -> float:
    return min(1.0, (1 - progress) / decay_fraction) if decay_fraction > 0 else 1.0


SCHEDULES: dict[str, Callable[[float, float, float], float]] = {"cosine": _cosine, "wsd": _wsd}
"""Values of ``train.schedule``: share of the peak rate as a function of three numbers in [0, 1]: the share of the run
that is done, the share of the rate that ``cosine`` ends at, and the last share of the run, where ``wsd`` falls to 0."""


def learning_rate(
    peak: float,
    *,
    step: int,
    warmup_steps: int,
    progress: float,
    final_share: float,
    schedule: str = "cosine",
    decay_fraction: float = 0.25,
) -> float:
    """Linear warm-up times a schedule of the share ``progress`` in [0, 1] of the run that is done.

    The warm-up takes ``warmup_steps`` steps, but at most the share `WARMUP_SHARE` of the run.
    """
    # a run that ends within its warm-up would never reach the rate that it was given
    warm = min(1.0, max((step + 1) / max(1, warmup_steps), progress / WARMUP_SHARE))
    return peak * warm * SCHEDULES[schedule](min(1.0, progress), final_share, decay_fraction)
