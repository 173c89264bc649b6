"""Device code without a device: nothing mixes devices, no call waits, and a plan is copied at once; then on a real one.

On pretended CUDA the arithmetic is the CPU's, so tokens are equal to those of a CPU in the same precision. On a real
device kernels round differently: `gpu` tests compare logits within 2e-2 in float32 and demand equal tokens in 9 of 10
sites, since one token that rounding changes moves all later ones of its image.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ggm_image.pipelines import token_model
from ggm_image.pipelines.image import Model
from ggm_image.pipelines.load import load_model
from ggm_image.sampler import base, guided, sample, sample_signal, truncated
from ggm_image.sampler.settings import Settings
from ggm_image.schedule import Schedule
from tests.pretend_cuda import Log, pretend_cuda

RAMP = {"guidance": 2.5, "guidance_power": 1.0}
CUT = {"temperature": 0.8, "top_k": 9, "top_p": 0.9}
SETTINGS = {
    "schedule": Settings(order="schedule", sweeps=2, block=4),
    "schedule one site a call": Settings(order="schedule", sweeps=1, block=1),
    "schedule guidance": Settings(order="schedule", sweeps=2, block=4, guidance=2.5),
    "schedule guidance ramp": Settings(order="schedule", sweeps=2, block=4, **RAMP),  # type: ignore[arg-type]
    "schedule truncated": Settings(order="schedule", sweeps=2, block=4, **CUT),  # type: ignore[arg-type]
    "signal": Settings(order="signal", sweeps=1, block=4),
    "signal revised": Settings(order="signal", sweeps=3, block=4, first_block=3),
    "signal guidance": Settings(order="signal", sweeps=2, block=4, guidance=2.5),
    "signal guidance ramp": Settings(order="signal", sweeps=2, block=4, **RAMP, **CUT),  # type: ignore[arg-type]
    "signal no class": Settings(order="signal", sweeps=2, block=4, guidance=0.0),
    "halton guidance ramp": Settings(order="signal", sweeps=2, block=4, first_order="halton", **RAMP),  # type: ignore[arg-type]
}
KNOWN = torch.full((3, 16), -1)
KNOWN[:, 2:9] = 7


@pytest.fixture(scope="module")
def cpu(model_folder: Path) -> Model:
    return in_float32(model_folder, "cpu")


def in_float32(model_folder: Path, device: str, **options: Any) -> Model:
    """The model with products in float32 even where the machine is fast in bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_model, "native_bf16", lambda device: False)
        return load_model(model_folder, device=device, **options)


@pytest.fixture(scope="module")
def pretended(model_folder: Path, cpu: Model) -> Model:
    """The model on pretended CUDA in float32, so that its tokens can be compared with a CPU's; use it inside only."""
    with pretend_cuda() as log:
        model = in_float32(model_folder, "cuda")
        model.kernel_batch, model.paint_batch = cpu.kernel_batch, cpu.paint_batch
        model.sample_tokens([0], batch=1)  # tables of positions are made once
        assert not log.mixed
    return model


def draw(model: Model, name: str, known: Tensor | None, batch: int = 4) -> Tensor:
    return model.sample_tokens([0, 1, 2], seed=3, settings=SETTINGS[name], known=known, batch=batch)


def in_the_loop(monkeypatch: pytest.MonkeyPatch, log: Log) -> dict[str, Any]:
    """What `run_plan` adds to the log after the plan has been moved; filled as runs go."""
    found: dict[str, Any] = {"waits": {}, "copies": {}, "calls": 0}
    step = base.step

    def logged(*arguments: Any) -> Any:
        before = log.waits.copy(), log.copies.copy()
        result = step(*arguments)
        found["waits"] |= log.waits - before[0]
        found["copies"] |= log.copies - before[1]
        found["calls"] += 1
        return result

    monkeypatch.setattr(base, "step", logged)
    return found


@pytest.mark.parametrize(
    ("name", "known"),
    [
        *((name, None) for name in SETTINGS),
        *((name, KNOWN) for name in ("schedule guidance ramp", "signal guidance ramp", "halton guidance ramp")),
    ],
)
def test_sampling_neither_mixes_devices_nor_waits(
    cpu: Model, pretended: Model, name: str, known: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # seen to fail with the weight of guidance asked of the device, and with blocks copied in each call
    expected = draw(cpu, name, known)
    with pretend_cuda() as log:
        loop = in_the_loop(monkeypatch, log)
        tokens = draw(pretended, name, known)
        unknown = 16 if known is None else int((known[0] < 0).sum())
        assert not log.mixed
        assert loop == {"waits": {}, "copies": {}, "calls": SETTINGS[name].calls(unknown)}
        assert sum(log.waits.values()) == 2, log.waits  # are all rows distributions; the tokens themselves
        # plan: integers, uniforms, levels; labels; noise; weights of guidance
        assert sum(log.copies.values()) <= 6, log.copies
    assert torch.equal(tokens, expected)


@pytest.mark.parametrize("name", SETTINGS)
def test_calls_recorded_as_cuda_graphs_neither_wait_nor_copy(model_folder: Path, cpu: Model, name: str) -> None:
    # seen to fail with float(levels.max()) in `Transformer.embed`, and with torch.tensor([...], device=...) there
    with pretend_cuda() as log:
        model = in_float32(model_folder, "cuda", cuda_graphs=True)
        model.kernel_batch = cpu.kernel_batch
        tokens = draw(model, name, None), draw(model, name, KNOWN)
        assert log.recordings
        assert not log.breaks_capture
        assert not log.mixed
        graphs = model._calls.graphs
        assert graphs is not None
        assert (graphs.replays, graphs.failed) == (SETTINGS[name].calls(16) + SETTINGS[name].calls(9), False)
    assert torch.equal(tokens[0], draw(cpu, name, None))
    assert torch.equal(tokens[1], draw(cpu, name, KNOWN))


def image_and_hole() -> tuple[Image.Image, np.ndarray]:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    hole = np.zeros((16, 24), dtype=bool)
    hole[3:9, 5:19] = True
    return Image.fromarray(pixels), hole


def inpainted(model: Model) -> Tensor:
    picture, hole = image_and_hole()
    found = model.inpaint(picture, hole, n=2, classes="dog", settings=SETTINGS["signal guidance ramp"])
    return torch.from_numpy(np.stack([np.asarray(each) for each in found]))


PIPELINES: dict[str, Callable[[Model], Tensor]] = {
    "sample": lambda model: model.sample(2, settings=SETTINGS["schedule"]),
    "inpaint": inpainted,
    "signal": lambda model: model.signal(image_and_hole()[0], classes="cat"),
    "encode": lambda model: model.encode([image_and_hole()[0]]),
    "decode": lambda model: model.decode(torch.arange(32).view(2, 4, 4)),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_do_not_mix_devices(cpu: Model, pretended: Model, name: str) -> None:
    # seen to fail with sites of the signal map left on the host
    with pretend_cuda() as log:
        found = PIPELINES[name](pretended)
        assert not log.mixed
        assert log.launches  # it did run on the device
    torch.testing.assert_close(found, PIPELINES[name](cpu), atol=1e-5, rtol=0)  # attention is another kernel


def test_a_model_in_bfloat16_does_not_mix_devices(model_folder: Path) -> None:
    with pretend_cuda() as log:
        model = load_model(model_folder, device="cuda")
        assert model.half
        model.sample(2, settings=SETTINGS["signal guidance ramp"])
        assert not log.mixed


def test_the_signal_map_waits_once_a_batch(pretended: Model) -> None:
    # seen to fail with the checks of `signal_logit` in each of its calls
    counts = []
    with pretend_cuda() as log:
        for block in (16, 1):
            log.clear()
            pretended.signal_of_tokens(torch.zeros(2, 4, 4, dtype=torch.int64), block=block, batch=2)
            counts.append((sum(log.waits.values()), sum(log.copies.values())))
    assert counts[0] == counts[1]
    assert counts[0][0] <= 4  # are the tokens codes (two), are the results numbers, the results


def test_pretended_cuda_finds_faults() -> None:
    with pretend_cuda() as log:
        x = torch.arange(6.0, device="cuda")
        y = x + 1.0
        assert (len(log.mixed), len(log.waits), len(log.copies)) == (0, 0, 0)
        assert sum(log.launches.values()) >= 2
        x + torch.ones(6)
        assert len(log.mixed) == 1
        torch.rand(6, generator=torch.Generator(), device="cuda")
        assert len(log.mixed) == 2
        for wait in (lambda: bool((y > 0).all()), y.cpu, lambda: y.nonzero(), lambda: y[y > 0]):
            log.clear()
            wait()
            assert log.waits, wait
        log.clear()
        torch.ones(3).to("cuda")
        y[torch.tensor([0, 1])]
        assert sum(log.copies.values()) == 2
        assert not log.mixed


# --- a real device --------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # torch warns of it on its first use
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", SETTINGS)
def test_a_real_device_gives_nearly_the_same_tokens_without_waiting(
    model_folder: Path, cpu: Model, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = in_float32(model_folder, "cuda")
    for _ in range(3):  # the third records CUDA graphs, which waits
        draw(model, name, None)
    step = base.step

    def strict(*arguments: Any) -> Any:
        try:
            torch.cuda.set_sync_debug_mode("error")  # an operation that waits raises
            return step(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(base, "step", strict)
    tokens = draw(model, name, None)
    monkeypatch.setattr(base, "step", step)
    assert (tokens == draw(cpu, name, None)).float().mean() >= 0.9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_real_device_gives_nearly_the_same_logits(model_folder: Path, cpu: Model) -> None:
    questions = torch.randint(33, (4, 16)), torch.rand(4, 16), torch.tensor([1, 5, 9]), torch.tensor([0, 1, 2, 3])
    with torch.inference_mode():
        expected = cpu.network(*questions)
        found = in_float32(model_folder, "cuda").network(*(x.cuda() for x in questions)).cpu()
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=2e-2)


def test_samplers_take_device_tensors() -> None:
    """Known tokens, classes and noise on the device say where to work."""

    def denoiser(tokens: Tensor, levels: Tensor, sites: Tensor, labels: Tensor | None) -> Tensor:
        index = sites.expand(len(tokens), -1)
        table = torch.arange(8, device=tokens.device) * 0.1
        return (index.unsqueeze(-1) + tokens.sum(1)[:, None, None] + 1) * table / 50

    known = torch.full((3, 16), -1)
    known[0, 3], known[1:, 5:8] = 2, 1  # two patterns
    options: dict[str, Any] = {"codebook_size": 8, "labels": torch.arange(3)}

    def both(device: str) -> list[Tensor]:
        given = {**options, "labels": options["labels"].to(device), "known": known.to(device)}
        network = truncated(guided(denoiser, 2.0, 3, power=1.0), top_k=5)
        generators = [torch.Generator().manual_seed(k) for k in range(6)]
        schedule = Schedule.round_robin(4, 4, sweeps=2, block=3)
        first = sample(network, schedule, 3, generator=generators[:3], **given)
        second = sample_signal(
            network, 3, height=4, width=4, calls=3, revise_calls=2, generator=generators[3:], **given
        )
        return [first, second]

    expected = both("cpu")
    with pretend_cuda() as log:
        found = both("cuda")
        assert {x.device.type for x in found} == {"cuda"}
        assert not log.mixed
        host = [x.cpu() for x in found]
    assert all(torch.equal(a, b) for a, b in zip(host, expected, strict=True))
