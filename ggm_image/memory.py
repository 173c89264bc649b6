"""How much memory a process can still take."""

from pathlib import Path

import torch

CGROUPS = (
    # version 2, version 1: limit, what is used, statistics, and the name there of what can be dropped at once
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)


def available_memory(device: torch.device, root: Path = Path("/")) -> int | None:
    """Bytes that can be taken on a device without the system having to find them elsewhere.

    On a CPU the least of what the kernel calls available and of what the limit of a container leaves.

    Args:
        device: the CPU, or a CUDA device.
        root: where the system's files are.

    Returns:
        The bytes; None where the system does not say.
    """
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return None
    found = []
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            found.append(int(line.split()[1]) << 10)
    for limit_file, used_file, cache_name in CGROUPS:
        limit, used = (_text(root / "sys/fs/cgroup" / name).strip() for name in (limit_file, used_file))
        if not (limit.isdecimal() and used.isdecimal()):
            continue
        statistics = _text((root / "sys/fs/cgroup" / limit_file).with_name("memory.stat"))
        cache = next((line.split()[1] for line in statistics.splitlines() if line.split()[:1] == [cache_name]), "0")
        found.append(max(0, int(limit) - int(used) + int(cache)))
    return min(found) if found else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
