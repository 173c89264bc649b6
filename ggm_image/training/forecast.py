"""What a run will cost, before it is started: parameters, arithmetic, memory, time.

| part | bytes |
| --- | --- |
| weights, gradients, AdamW's two moments, moving average | 20 a parameter: all five in float32 |
| activations | what a forward pass keeps for the backward pass, counted on tensors without numbers |

Compiled blocks keep less than is counted here. The working space of single kernels, the data and the libraries come on
top. Operations are those of the matrix products, a backward pass costing two forward ones. Time
assumes that a step reaches `SHARE` of the rate of a large matrix product, which is measured.
"""

import math
import time
from dataclasses import dataclass

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ggm_image.network import Transformer
from ggm_image.schedule import random_training_state
from ggm_image.training.config import GeneratorConfig

SHARE = 0.5
"""Of the product rate: what `tools/bench_train.py` asks of this package; it says what a machine really reaches."""
BYTES_A_PARAMETER = 20
PRODUCT_SIDE = 2048


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """The cost of a run.

    Attributes:
        parameters: of the network.
        step_flops: floating-point operations of one optimizer step.
        state_bytes: weights, gradients, optimizer and moving average.
        activation_bytes: of one step's batch.
        step_seconds: at the machine's rate.
        steps: optimizer steps until the run ends, by ``train.steps`` or by time.
    """

    parameters: int
    step_flops: float
    state_bytes: int
    activation_bytes: int
    step_seconds: float
    steps: int

    @property
    def seconds(self) -> float:
        return self.steps * self.step_seconds


def forecast(config: GeneratorConfig, *, device: str = "cpu", processes: int = 1) -> Forecast:
    """What training as ``config`` says will cost on ``device``; takes seconds, and little memory."""
    train, height_width = config.train, config.network.grid
    sites = height_width[0] * height_width[1]
    queried = mean_queried(*height_width)
    with torch.device("meta"):
        network = Transformer(config.network)
    parameters = sum(p.numel() for p in network.parameters())
    flops = 3.0 * train.batch_size * network.flops(sites, round(queried))
    seconds = flops / (SHARE * product_rate(torch.device(device)))
    steps = train.steps
    if train.max_minutes is not None:
        steps = min(steps, max(1, int(60 * train.max_minutes / seconds)))
    return Forecast(
        parameters=parameters,
        step_flops=flops,
        state_bytes=BYTES_A_PARAMETER * parameters,
        activation_bytes=activation_bytes(config),
        step_seconds=seconds,
        steps=steps,
    )


def mean_queried(height: int, width: int, draws: int = 200) -> float:
    """Mean number of queried sites of a training step."""
    generator = torch.Generator().manual_seed(0)
    return sum(len(random_training_state(1, height, width, generator=generator).sites) for _ in range(draws)) / draws


def activation_bytes(config: GeneratorConfig) -> int:
    """Bytes that a forward pass of a whole batch, all sites queried, keeps for its backward pass."""
    one, two = _kept(config, 1), _kept(config, 2)
    return one + (two - one) * (config.train.batch_size - 1)


def _kept(config: GeneratorConfig, rows: int) -> int:
    """Bytes kept for ``rows`` pictures; tensors that share their memory count once, and the weights do not."""
    sites = config.network.grid[0] * config.network.grid[1]
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        alive.append(tensor)  # or another storage may get its place
        return tensor

    alive: list[torch.Tensor] = []
    half = config.train.precision.startswith("bf16")
    with torch.device("meta"):
        network = Transformer(config.network)
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with FakeTensorMode(allow_non_fake_inputs=True), hooks:
        network.to_empty(device="cpu")
        tokens = torch.zeros(rows, sites, dtype=torch.int64)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            logits = network(tokens, torch.ones(rows, sites), torch.arange(sites))
            logits.log_softmax(-1).exp().sum()  # the loss works on a few tensors of the logits' size
        weights = {p.untyped_storage()._cdata for p in network.parameters()}
        return sum(size for place, size in kept.items() if place not in weights)


def product_rate(device: torch.device, repeats: int = 4) -> float:
    """Operations a second of a (2048, 2048) bfloat16 matrix product."""
    a, b = torch.randn(2, PRODUCT_SIDE, PRODUCT_SIDE, device=device).bfloat16()
    out = torch.empty_like(a)
    torch.mm(a, b, out=out)
    start = now(device)
    for _ in range(repeats):
        torch.mm(a, b, out=out)
    return 2 * PRODUCT_SIDE**3 * repeats / (now(device) - start)


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def lines(cost: Forecast) -> list[str]:
    """For people."""
    gib = 1 << 30
    days, rest = divmod(cost.seconds, 86_400)
    duration = f"{days:.0f} days " * (days >= 1) + f"{rest / 3600:.1f} h" if cost.seconds >= 5400 else ""
    return [
        f"parameters   {cost.parameters / 1e6:,.1f} million",
        f"a step       {cost.step_flops / 1e12:,.3g} TFLOP, about {_digits(cost.step_seconds)} s",
        f"memory       {(cost.state_bytes + cost.activation_bytes) / gib:,.2f} GiB: "
        f"{cost.state_bytes / gib:,.2f} weights, optimizer and average, {cost.activation_bytes / gib:,.2f} activations",
        f"the run      {cost.steps:,} steps, about {duration or f'{cost.seconds / 60:.0f} min'}, "
        f"at {SHARE:.0%} of this machine's rate of matrix products",
    ]


def _digits(value: float) -> str:
    """Two significant digits, without an exponent."""
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}"
