"""bf16 where it is in hardware, float32 elsewhere, and a line that says which."""

import pytest
import torch

from ggm_image.pipelines import token_model
from ggm_image.runtime import precision
from ggm_image.training.distributed import make_fabric

CPU = torch.device("cpu")


@pytest.fixture
def cpu_with(monkeypatch: pytest.MonkeyPatch) -> object:
    """Give this CPU bf16, or take it away."""

    def give(has: bool) -> None:
        for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has)

    return give


def test_auto_is_what_the_device_has(cpu_with) -> None:  # type: ignore[no-untyped-def]
    cpu_with(True)
    assert precision.choose_precision("auto", CPU) == (
        "bf16-mixed",
        "precision: bf16-mixed, which this CPU has in hardware",
    )
    assert precision.choose_precision("bf16-mixed", CPU) == ("bf16-mixed", "")
    assert make_fabric("cpu", "auto").strategy.precision.precision == "bf16-mixed"
    cpu_with(False)
    assert precision.choose_precision("auto", CPU)[0] == "32-true"
    assert "no bf16 in hardware" in precision.choose_precision("auto", CPU)[1]
    assert make_fabric("cpu", "auto").strategy.precision.precision == "32-true"
    asked, line = precision.choose_precision("bf16-mixed", CPU)
    assert asked == "bf16-mixed"
    assert line.startswith("warning: this CPU has no bf16 in hardware")
    assert precision.choose_precision("32-true", CPU) == ("32-true", "")
    assert precision.choose_precision("auto", torch.device("mps"))[0] == "32-true"


@pytest.mark.parametrize(("isa", "native"), [("AVX2", False), ("AVX512_CORE", False), ("AVX512_CORE_BF16", True)])
def test_a_limit_of_onednn_counts(cpu_with, isa: str, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """It is oneDNN that multiplies, and that emulates what it may not use."""
    cpu_with(True)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
    assert precision.native_bf16(CPU) is native


@pytest.mark.parametrize(("capability", "native"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus_have_it_from_ampere_on(
    capability: tuple[int, int], native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision.native_bf16(torch.device("cuda", 1)) is native


def test_sampling_asks_the_same_question() -> None:
    """Seen to fail at f183d35, where training did not ask at all."""
    assert token_model.native_bf16 is precision.native_bf16
