"""Every call of a pipeline goes through CUDA graphs where there are any, and samples are the same bits."""

import copy
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ggm_image.errors import UserError
from ggm_image.network import NetworkConfig, Transformer
from ggm_image.pipelines.image import Model
from ggm_image.pipelines.load import load_model
from ggm_image.pipelines.network_calls import NetworkCalls
from ggm_image.runtime.cuda_graph import CudaGraphs
from ggm_image.sampler.settings import Settings
from tests.models import tiny_text_model_folder
from tests.pretend_cuda import PretendRecorder, pretend_cuda

RAMP = {"guidance": 2.5, "guidance_power": 1.0}
SETTINGS = {
    "schedule": Settings(order="schedule", sweeps=2, block=4),
    "schedule one site a call": Settings(order="schedule", sweeps=1, block=1),
    "signal": Settings(order="signal", sweeps=2, block=4, temperature=0.8, top_k=9),
    "signal guidance": Settings(order="signal", sweeps=2, block=4, guidance=2.5),
    "signal no class": Settings(order="signal", sweeps=1, block=4, guidance=0.0),
    "halton guidance ramp": Settings(order="signal", sweeps=2, block=4, first_order="halton", **RAMP),  # type: ignore[arg-type]
}


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text_model_folder(tmp_path_factory.mktemp("text"))


class OnCpu(PretendRecorder):
    """Records on a CPU."""

    def takes(self, device: torch.device) -> bool:
        return True

    def record(self, compute: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, Any]:
        with torch.inference_mode(False), torch.no_grad():
            place = compute().clone()
        return place, lambda: place.copy_(compute())


def recorded() -> tuple[NetworkCalls, CudaGraphs]:
    calls = NetworkCalls(True)
    calls.graphs = CudaGraphs(at_once=True, recorder=OnCpu())
    return calls, calls.graphs


def tiny_network() -> Transformer:
    torch.manual_seed(0)
    network = Transformer(NetworkConfig(codebook_size=32, classes=3, grid=[4, 4], width=32, depth=2, heads=2))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.eval()


def question(seed: int, rows: int = 2) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(33, (rows, 16), generator=generator)
    levels = torch.rand(rows, 16, generator=generator)
    return tokens, levels, torch.randperm(16, generator=generator)[:3], torch.arange(rows)


@torch.no_grad()
def test_replayed_logits_are_those_of_the_network() -> None:
    network, (calls, graphs) = tiny_network(), recorded()
    for seed in range(3):
        tokens, levels, sites, labels = question(seed)
        for where in (sites, torch.stack([sites, sites + 1]).clamp(max=15)):
            for classes in (labels, None):
                found = calls(network, tokens, levels, where, classes, (4, 4))
                assert torch.equal(found, network(tokens, levels, where, classes, (4, 4)))
    assert (graphs.recordings, graphs.replays) == (4, 12)


@torch.no_grad()
def test_replaced_weights_are_seen_and_written_ones_too() -> None:
    network, (calls, graphs) = tiny_network(), recorded()

    def check(recordings: int) -> None:
        found = calls(network, *question(0), (4, 4))
        assert torch.equal(found, network(*question(0), (4, 4)))
        assert (graphs.recordings, len(graphs)) == (recordings, 1)

    check(1)
    network.level[0].weight.mul_(2)  # in place
    check(1)
    network.load_state_dict({k: v + 0.1 for k, v in network.state_dict().items()}, assign=True)
    check(2)
    network.site.weight.data = network.site.weight.data + 1
    check(3)
    network.condition.bias = torch.nn.Parameter(torch.ones(6 * 32))
    check(4)
    network = copy.deepcopy(network)
    check(5)
    network._compiled = True  # as after `compile_blocks`
    calls(network, *question(0), (4, 4))
    assert graphs.recordings == 6
    calls.clear()
    assert len(graphs) == 0


@torch.no_grad()
def test_weights_that_autocast_would_convert_are_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    network, (calls, graphs) = tiny_network(), recorded()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
        for dtype, recordings in ((torch.float32, 0), (torch.bfloat16, 1)):
            calls(network.to(dtype), *question(0), (4, 4))
            assert graphs.recordings == recordings


def test_anything_else_than_a_network_is_called_plainly() -> None:
    calls, graphs = recorded()

    def network(*arguments: Any) -> Tensor:
        assert arguments[4] == (4, 4)
        return torch.ones(1)

    assert calls(network, *question(0), (4, 4)).tolist() == [1.0]
    assert graphs.recordings == 0


def test_false_means_none_and_cpus_have_none(model_folder: Path, text_folder: Path) -> None:
    for path in (model_folder, text_folder):
        assert load_model(path, device="cpu", cuda_graphs=False)._calls.graphs is None
        model = load_model(path, device="cpu")
        for _ in range(3):
            model.sample(1, preset="fast")
        assert model._calls.graphs.recordings == 0
        assert not model._calls.graphs.failed
        with pytest.raises(UserError, match="CUDA graphs need a CUDA device"):
            load_model(path, device="cpu", cuda_graphs=True)


def test_moving_a_model_drops_its_graphs(model_folder: Path) -> None:
    with pretend_cuda():
        model = load_model(model_folder, device="cuda", cuda_graphs=True)
        model.sample_tokens([0], settings=SETTINGS["signal"], batch=2)
        graphs = model._calls.graphs
        assert graphs is not None
        assert len(graphs) > 0
        with pytest.raises(UserError, match="CUDA graphs need a CUDA device"):
            model.to("cpu")
        assert len(graphs) > 0  # nothing was moved
        model.to("cuda")
        assert len(graphs) == 0


def test_every_call_of_every_pipeline_is_replayed(model_folder: Path, text_folder: Path) -> None:
    with pretend_cuda() as log:
        for path in (model_folder, text_folder):
            model = load_model(path, device="cuda", cuda_graphs=True)
            model.kernel_batch, model.paint_batch = 2, 2
            calls = count_calls(model)
            for _ in use(model, ["signal guidance"]):
                pass
            graphs = model._calls.graphs
            assert graphs.replays == len(calls) > 0
            assert not graphs.failed
        assert log.recordings
        assert not log.breaks_capture


def count_calls(model: Any) -> list[int]:
    """One entry for every network call of a model from now on."""
    calls, made = model._calls, []

    class Counted(NetworkCalls):
        def __call__(self, *arguments: Any) -> Tensor:
            made.append(1)
            return super().__call__(*arguments)

    calls.__class__ = Counted
    return made


def use(model: Any, names: Iterable[str] = SETTINGS) -> Iterator[Tensor]:
    """What a model can do with its network, on small inputs."""
    if not isinstance(model, Model):
        for name in names:
            yield texts(model.sample(2, seed=1, settings=SETTINGS[name]))
        yield texts(model.infill("a____b", n=2, preset="fast"))
        yield texts(model.sample(1, length=40, preset="fast"))  # windows
        yield model.signal(b"glauber dynamics and more", block=3)
        return
    for name in names:
        yield model.sample_tokens([0, 1, 2], seed=3, settings=SETTINGS[name])
    known = torch.full((3, 16), -1)
    known[0, 2:9], known[1, 3:5], known[2, :12] = 7, 8, 9  # each image's own
    yield model.sample_tokens([0, 1, 2], seed=3, settings=SETTINGS["signal guidance"], known=known)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    hole = np.zeros((16, 24), dtype=bool)
    hole[3:9, 5:19] = True
    for classes in ("dog", None):
        images = model.inpaint(Image.fromarray(pixels), hole, n=2, classes=classes, settings=SETTINGS["signal"])
        yield torch.from_numpy(np.stack([np.asarray(image) for image in images]))
    yield model.signal(Image.fromarray(pixels), classes="cat")


def texts(found: list[bytes]) -> Tensor:
    return torch.tensor([list(text) for text in found])


# --- a real device --------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", ["image", "text"])
@pytest.mark.parametrize("cuda_graphs", [True, None])
def test_samples_are_the_same_bits_on_a_real_device(
    model_folder: Path, text_folder: Path, kind: str, cuda_graphs: bool | None
) -> None:
    path = model_folder if kind == "image" else text_folder
    plain = load_model(path, device="cuda", cuda_graphs=False)
    model = load_model(path, device="cuda", cuda_graphs=cuda_graphs)
    for each in (plain, model):
        each.kernel_batch, each.paint_batch = 2, 2  # with the default there are more shapes than graphs are kept
    calls = count_calls(model)
    expected = list(use(plain))
    for _ in range(1 if cuda_graphs else 4):
        for number, (found, wanted) in enumerate(zip(use(model), expected, strict=True)):
            assert torch.equal(found, wanted), number
    graphs = model._calls.graphs
    assert not graphs.failed
    assert graphs.recordings == len(graphs) > 0
    assert graphs.replays > 0
    if cuda_graphs:
        assert graphs.replays == len(calls)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("half", [False, True])
def test_logits_are_the_same_bits_on_a_real_device(half: bool) -> None:
    network = tiny_network().to("cuda", torch.bfloat16 if half else torch.float32)
    calls, logits = NetworkCalls(True), []
    assert calls.graphs is not None
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=half):
        for seed in range(3):
            tokens, levels, sites, labels = (x.cuda() for x in question(seed, rows=4))
            for where in (sites, sites.expand(4, -1)):
                for classes in (labels, None):
                    found = calls(network, tokens, levels, where, classes, (4, 4))
                    logits.append((found, network(tokens, levels, where, classes, (4, 4))))
    assert all(torch.equal(found, wanted) for found, wanted in logits)  # also after later replays
    assert (calls.graphs.recordings, calls.graphs.replays, calls.graphs.failed) == (4, 12, False)
