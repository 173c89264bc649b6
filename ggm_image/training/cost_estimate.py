"""Estimate the cost of a run before it is started: parameters, operations, memory, time.

With P parameters, R of them outside of the blocks, B in a block, and W processes, a process holds

| part | bytes |
| --- | --- |
| one process, ddp | 20 P: weights, gradients, AdamW's two moments, moving average, all in float32 |
| fsdp | 20 P / W, and what is put together for use: 4 (2 R + 3 B), weights of two blocks, gradients of one |
| activations | what a forward pass of its rows keeps for the backward pass, counted on tensors without numbers |

and sends, in a step, 8 P (W - 1) / W bytes (ddp: gradients are summed and handed back) or 4 P (W - 1) / W times 1 + 2 a
piece (fsdp: weights are fetched twice for each piece of `train.accumulate`, gradients summed once).

Compiled blocks keep less than is counted here. The working space of single kernels, the data and the libraries come on
top. Operations are those of the matrix products, a backward pass costing two forward ones, and a third with
`train.activation_checkpointing`.

The time of a step is measured by `ggm_image.training.step_time` where the run is not compiled and fits into memory.
Otherwise, and where a rate is given, it is computed: a step reaches `SHARES` of the rate of a large matrix product, and
Muon's products, which do not depend on the batch, all of it. On a GPU the traffic of its memory comes on top, and
launching its kernels takes at least `LAUNCH_SECONDS` each. What is sent comes on top, at the rate of `LINKS`, which is
not measured.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ggm_image.network import Transformer
from ggm_image.runtime.compile import cannot_compile, compile_pays
from ggm_image.runtime.memory import available_memory
from ggm_image.runtime.meta import shapes_only
from ggm_image.runtime.precision import choose_precision
from ggm_image.schedule import random_training_state
from ggm_image.training.config import GeneratorConfig, TrainConfig, digits, duration
from ggm_image.training.criterion import Criterion
from ggm_image.training.optim import muon_flops
from ggm_image.training.step_time import time_steps

SHARES = {"bf16-mixed": 0.5, "32-true": 0.65}
"""Of the product rate, by precision; `tools/benchmarks/bench_train.py` says what a machine really reaches."""
BYTES_A_PARAMETER = 20
LAUNCH_SECONDS = 20e-6
"""Of the host, for a kernel. Fitted to logs of an H100 that two or three runs shared: 34 ms a step, for 570 kernels."""
LAUNCHES = {"block": 40, "rest": 100, "muon": 150}
"""Kernels of a compiled step: of each block, of all else, and of Muon in addition."""
OPERATIONS_A_BYTE = 120
"""Operations of matrix products in the time in which a GPU moves a byte of its memory: about 120 for H100 and A100."""
ACTIVATION_PASSES = 3
"""How often a kept activation is moved: written, read, and its gradient; compiled kernels fuse the others."""
GPU_RATE = 1e13
"""Operations a second from which on a rate that is given is taken for a GPU's."""
PRODUCT_SIDE = 2048
LINKS = (100e9, 25e9)
"""Assumed bytes a second that each process can send: within a machine, and between machines."""


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """The cost of a run.

    Attributes:
        step_flops: floating-point operations of one optimizer step, in all processes together.
        state_bytes: weights, gradients, optimizer and moving average, in a process.
        activation_bytes: of the rows that a process works on at a time.
        sent_bytes: what a process sends in a step.
        steps: optimizer steps until the run ends, by ``train.steps`` or by time.
        precision: of the matrix products, see `precision.choose_precision`.
        timed_rows: most rows of the steps that were timed; 0 where the time is computed.
    """

    parameters: int
    step_flops: float
    state_bytes: int
    activation_bytes: int
    sent_bytes: float
    step_seconds: float
    steps: int
    batch_size: int
    processes: int
    precision: str
    timed_rows: int = 0

    @property
    def seconds(self) -> float:
        return self.steps * self.step_seconds


def estimate_cost(
    config: GeneratorConfig,
    *,
    device: str = "cpu",
    devices: int = 1,
    nodes: int = 1,
    rate: float | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> CostEstimate:
    """What training as ``config`` says will cost; takes up to half a minute, and the memory of a small batch.

    Args:
        device: where steps are timed, or else its rate.
        rate: operations a second of a matrix product on one device, where it is not to be measured.
        report: receives a line before steps are timed.
    """
    precision = choose_precision(config.train.precision, torch.device(device))[0]
    config = replace(config, train=replace(config.train, precision=precision))
    train, (height, width) = config.train, config.network.grid
    sites, processes = height * width, devices * nodes
    queried = mean_queried(height, width, config.objective.cosine)
    with shapes_only():  # weights without memory: the network may not fit on this machine
        network = Transformer(config.network)
    parameters = sum(p.numel() for p in network.parameters())
    block = sum(p.numel() for p in network.blocks[0].parameters())
    sharded = train.strategy == "fsdp" and processes > 1
    state, sent = BYTES_A_PARAMETER * parameters, 8.0 * parameters
    if sharded:  # FSDP keeps its share of the state and gathers the weights of a few modules at a time
        rest = parameters - config.network.depth * block
        state = math.ceil(state / processes) + 4 * (2 * rest + 3 * block)
        sent = 4.0 * parameters * (1 + 2 * train.accumulate)
    sent *= (processes - 1) / processes
    flops = (4.0 if train.activation_checkpointing else 3.0) * train.batch_size * network.flops(sites, round(queried))
    rows = math.ceil(train.batch_size / (processes * train.accumulate))
    activations = activation_bytes(config, rows)
    place = torch.device(device)
    timed, most = None, _rows_that_fit(BYTES_A_PARAMETER * parameters, activations / rows, place)
    if rate is None and not _compiled(train, place) and most:
        report("timing a few steps of this run; half a minute at most on an idle machine")
        most = min(most, math.ceil(train.batch_size / processes))
        timed = time_steps(config, device, rows=most, queried=round(queried))
        seconds = timed.seconds(train.batch_size / processes)
    else:
        rate = rate or product_rate(place, precision)
        seconds = flops / (SHARES[precision] * rate * processes)
        if train.optimizer == "muon":  # its products are large, and every process computes them all
            seconds += muon_flops(network) / rate
        if place.type == "cuda" or rate > GPU_RATE:
            traffic = train.accumulate * ACTIVATION_PASSES * activations + 2 * state
            seconds = max(seconds + traffic * OPERATIONS_A_BYTE / rate, _launches(config) * LAUNCH_SECONDS)
    seconds += sent / LINKS[nodes > 1]
    steps = train.steps
    if train.max_minutes is not None:
        steps = min(steps, max(1, int(60 * train.max_minutes / seconds)))
    return CostEstimate(
        parameters=parameters,
        step_flops=flops,
        state_bytes=state,
        activation_bytes=activations,
        sent_bytes=sent,
        step_seconds=seconds,
        steps=steps,
        batch_size=train.batch_size,
        processes=processes,
        precision=precision,
        timed_rows=0 if timed is None else timed.rows,
    )


def _compiled(train: TrainConfig, device: torch.device) -> bool:
    """Whether the run will be compiled, of which a few steps without compiling say nothing."""
    asked, _ = compile_pays(train.compile, device, train.precision, steps=train.steps, minutes=train.max_minutes)
    return asked and not cannot_compile(device.type)


def _rows_that_fit(state: int, activations: float, device: torch.device) -> int:
    """Rows whose activations, with the state of the run, take no more than half of what is available; 0 for none."""
    available = available_memory(device)
    return 1 << 30 if available is None else max(0, int((available / 2 - state) / activations))


def _launches(config: GeneratorConfig) -> int:
    train = config.train
    step = config.network.depth * LAUNCHES["block"] * train.accumulate + LAUNCHES["rest"]
    return step + LAUNCHES["muon"] * (train.optimizer == "muon")


def mean_queried(height: int, width: int, cosine: float, samples: int = 200) -> float:
    """Mean number of queried sites of a training step, of which the share ``cosine`` queries any number."""
    generator = torch.Generator().manual_seed(0)
    states = (random_training_state(1, height, width, generator=generator, cosine=cosine) for _ in range(samples))
    return sum(len(state.sites) for state in states) / samples


def activation_bytes(config: GeneratorConfig, rows: int | None = None) -> int:
    """Bytes that a forward pass, all sites queried, keeps for its backward pass."""
    rows = config.train.batch_size if rows is None else rows
    kept = _of_rows(config, rows)
    if not config.train.activation_checkpointing:
        return kept
    # what goes into each block, and one block that is computed again
    network, half = config.network, config.train.precision.startswith("bf16")
    sizes = [_of_rows(replace(config, network=replace(network, depth=depth)), rows) for depth in (1, 2)]
    stream = rows * network.grid[0] * network.grid[1] * network.width * (2 if half else 4)
    return kept - (network.depth - 1) * (sizes[1] - sizes[0]) + network.depth * stream


def _of_rows(config: GeneratorConfig, rows: int) -> int:
    one, two = _kept(config, 1), _kept(config, 2)
    return one + (two - one) * (rows - 1)


def _kept(config: GeneratorConfig, rows: int) -> int:
    """Bytes kept for ``rows`` images; tensors that share their memory count once, and the weights do not."""
    sites = config.network.grid[0] * config.network.grid[1]
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        alive.append(tensor)  # or another storage may get its place
        return tensor

    alive: list[torch.Tensor] = []
    half = config.train.precision.startswith("bf16")
    with shapes_only():
        network = Transformer(config.network)
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with FakeTensorMode(allow_non_fake_inputs=True), hooks:
        network.to_empty(device="cpu")
        noise = torch.ones(config.network.codebook_size)
        criterion = Criterion(network, config.objective, noise)
        tokens, levels = torch.zeros(rows, sites, dtype=torch.int64), torch.ones(rows, sites)
        uniforms = [torch.zeros(rows, sites, 3)] if config.objective.name == "binary-sampled" else []
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            criterion(tokens, levels, torch.arange(sites), torch.zeros(rows).long(), tokens, levels, *uniforms)
        weights = {p.untyped_storage()._cdata for p in network.parameters()}
        return sum(size for place, size in kept.items() if place not in weights)


def product_rate(device: torch.device, precision: str = "bf16-mixed", seconds: float = 1.0) -> float:
    """Operations a second of a square matrix product.

    The side is 2048, or the first power of two from 256 on whose product takes an eighth of the time limit: emulated
    bf16 is hundreds of times slower than what it emulates.
    """
    dtype, side, end = torch.bfloat16 if precision == "bf16-mixed" else torch.float32, 256, now(device) + seconds
    while True:
        a, b = torch.randn(2, side, side, device=device).to(dtype)
        out = torch.empty_like(a)
        torch.mm(a, b, out=out)  # the first one sets things up
        start = now(device)
        torch.mm(a, b, out=out)
        took = now(device) - start
        if side == PRODUCT_SIDE or took > seconds / 8:
            break
        side *= 2
    repeats = max(1, min(4, int((end - now(device)) / max(took, 1e-9))))
    start = now(device)
    for _ in range(repeats):
        torch.mm(a, b, out=out)
    return 2 * side**3 * repeats / (now(device) - start)


def now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def lines(cost: CostEstimate) -> list[str]:
    """For people."""
    gib = 1 << 30
    several = cost.processes > 1
    return [
        f"parameters   {cost.parameters / 1e6:,.1f} million",
        f"a step       {cost.step_flops / 1e12:,.3g} TFLOP, about {digits(cost.step_seconds)} s, "
        f"{cost.batch_size / cost.step_seconds:,.3g} images/s"
        + f"; each of {cost.processes} processes sends {cost.sent_bytes / 1e9:,.3g} GB"
        * several,
        f"memory       {(cost.state_bytes + cost.activation_bytes) / gib:,.2f} GiB{' a process' * several}: "
        f"{cost.state_bytes / gib:,.2f} weights, optimizer and average, {cost.activation_bytes / gib:,.2f} activations",
        f"the run      {cost.steps:,} steps, about {duration(cost.seconds)}, "
        + (
            f"by steps of up to {cost.timed_rows:,} rows that were timed in {cost.precision}"
            if cost.timed_rows
            else f"at {SHARES[cost.precision]:.0%} of the rate of matrix products in {cost.precision}"
        ),
    ]
