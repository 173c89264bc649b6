"""The device is chosen by one rule, and refused in one line."""

import pytest
import torch

from ggm_image.errors import UserError
from ggm_image.runtime.devices import check_device_name, choose_device, resolve_device


@pytest.mark.parametrize("name", ["gpu", "cuda:x", "cuda:", "cuda:1234", "", "CPU", "xla", "cpu\n"])
def test_names(name: str) -> None:
    with pytest.raises(UserError, match="no such device"):
        check_device_name(name)
    with pytest.raises(UserError, match="no such device"):
        resolve_device(name)


def test_the_nearest_name() -> None:
    with pytest.raises(UserError, match="use cuda"):
        check_device_name("cuad")


def test_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device() == resolve_device("auto") == "cpu"
    assert choose_device(None) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device(None) == "cuda"
    assert choose_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
    with pytest.raises(UserError, match=r"device is not available \(cuda:2, 2 CUDA devices found\); use cuda:0 to"):
        choose_device("cuda:2")


def test_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("cuda", "cuda:0", "mps"):
        with pytest.raises(UserError, match="device is not available"):
            choose_device(name)


@pytest.mark.parametrize(("rank", "device"), [("0", "cuda:0"), ("3", "cuda:1"), ("", "cuda"), ("x", "cuda")])
def test_each_process_of_torchrun_has_its_own(rank: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert choose_device() == torch.device(device)
    assert choose_device("cuda:0") == torch.device("cuda:0")
    assert choose_device("cpu") == torch.device("cpu")
