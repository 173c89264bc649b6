"""The benchmark of CUDA graphs: nothing to do without a device, and on a pretended one everything but the times."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ggm_image.pipelines import token_model
from tests.models import tiny_model_folder
from tests.pretend_cuda import PretendRecorder, pretend_cuda

BENCHMARKS = Path(__file__).parents[2] / "tools" / "benchmarks"


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("bench_cuda_graph")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_so(tool: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert tool.run(tool.main, ["--json", str(tmp_path / "out.json")]) == 0
    assert capsys.readouterr().out == "no CUDA device\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("recorder", ["right", "wrong", "broken"])
def test_tokens_are_compared(
    tool: ModuleType, recorder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "max_memory_reserved": lambda: 0,
        "reset_peak_memory_stats": lambda: None,
        "get_device_name": lambda: "pretended",
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)

    def record(self: PretendRecorder, compute, device):  # type: ignore[no-untyped-def]
        if recorder == "broken":
            raise RuntimeError("capture failed")
        output = compute()
        return output, (lambda: output.copy_(compute())) if recorder == "right" else (lambda: output.zero_())

    monkeypatch.setattr(PretendRecorder, "record", record)
    monkeypatch.setattr(token_model, "rows_per_call", lambda device, sites: 2)
    folder, out = tiny_model_folder(tmp_path), tmp_path / "out.json"
    options = ["--model", str(folder), "--preset", "fast", "-n", "2", "--repeats", "1", "--json", str(out)]
    with pretend_cuda():
        status = tool.run(tool.main, options)
    result = json.loads(out.read_text())
    found, plain = result["ways"]["graphs"], result["ways"]["plain"]
    assert (plain["graphs"], plain["replays"], plain["equal"]) == (0, 0, True)
    if recorder == "right":
        assert (status, result["good"], found["equal"], found["failed"]) == (0, True, True, False)
        assert found["graphs"] > 0
        assert found["replays"] > 0
        assert "tokens equal: yes" in capsys.readouterr().out
    else:
        assert (status, result["good"]) == (1, False)
        assert (found["equal"], found["failed"]) == ((False, False) if recorder == "wrong" else (True, True))
