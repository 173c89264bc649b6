"""Available memory, and how freed memory is kept for reuse on the CPU."""

import ctypes
import functools
import mmap
from pathlib import Path

import torch

CGROUPS = (
    # version 2, version 1: limit, what is used, statistics, and the name there of what can be dropped at once
    ("memory.max", "memory.current", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
)


def available_memory(device: torch.device, root: Path = Path("/")) -> int | None:
    """Bytes that can be taken on a device without the system having to find them elsewhere; None if unknown.

    On a CPU the least of what the kernel calls available and of what the limit of a container leaves.

    Args:
        root: where the system's files are.
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


HEAP_BYTES = 6 << 30


@functools.cache
def keep_freed_memory() -> None:
    """Give tensors memory in huge pages that is never handed back to the system, instead of fresh pages each time.

    Each fresh page costs a fault and 4 KiB of zeros, and each small one a place in the processor's address cache; in a
    CPU training step this can cost more than the elementwise work itself. It concerns the whole process, so commands
    ask for it, and the library does not. One large block is taken from the heap, marked for huge pages and freed again:
    what is never touched takes no memory. Elsewhere than on glibc nothing is done.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        libc.free.argtypes = [ctypes.c_void_p]
        libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        m_trim_threshold, m_mmap_max, m_arena_max, madv_hugepage = -1, -4, -8, 14
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, -1)  # as unsigned: never give back
        libc.mallopt(m_arena_max, 1)  # the thread of the backward pass would have a heap of its own
        block = libc.malloc(HEAP_BYTES)
        if block:
            start = -(-block // mmap.PAGESIZE) * mmap.PAGESIZE
            end = (block + HEAP_BYTES) // mmap.PAGESIZE * mmap.PAGESIZE
            libc.madvise(start, end - start, madv_hugepage)
            libc.free(block)
    except (OSError, AttributeError):
        return
