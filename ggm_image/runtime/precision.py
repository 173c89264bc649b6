"""Which precision a device multiplies matrices fast in; used by training, sampling and cost estimates."""

import os

import torch

PRECISIONS = ("auto", "bf16-mixed", "32-true")
_WITHOUT_BF16 = ("SSE", "AVX2", "AVX512_CORE_VNNI")


def native_bf16(device: torch.device) -> bool:
    """Whether bf16 matrix products are in hardware there; elsewhere they are emulated, and many times slower.

    On a CPU oneDNN computes them, so a limit that ``ONEDNN_MAX_CPU_ISA`` sets for it counts too.
    """
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return False
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", os.environ.get("DNNL_MAX_CPU_ISA", "")).upper()
    if limit in ("AVX", "AVX512_CORE") or limit.startswith(_WITHOUT_BF16):
        return False
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def choose_precision(asked: str, device: torch.device) -> tuple[str, str]:
    """The precision of a training run, and a line that says why.

    Args:
        asked: one of `PRECISIONS`.

    Returns:
        ``bf16-mixed`` or ``32-true``, and the line; empty where the config states a precision that the device has.
    """
    native, where = native_bf16(device), "this CPU" if device.type == "cpu" else f"this {device.type} device"
    if asked == "auto":
        if native:
            return "bf16-mixed", f"precision: bf16-mixed, which {where} has in hardware"
        return "32-true", f"precision: 32-true, as {where} has no bf16 in hardware"
    if asked == "bf16-mixed" and not native:
        line = f"warning: {where} has no bf16 in hardware, so train.precision=bf16-mixed can be 10 to 20 times slower"
        return asked, f"{line} than train.precision=auto"
    return asked, ""
