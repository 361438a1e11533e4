"""What memory is really held: proportional set size (PSS) of processes, and what the machine or cgroup has.

PSS counts a page shared by n mappings as 1/n of it in each, so weights mapped by a hundred copies of a model count
once. RSS counts them a hundred times and USS not at all; neither can be a budget's yardstick.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def pss_bytes(pid: int | None = None) -> int:
    """Proportional set size of a process (default: this one), bytes; 0 when it is gone.

    Costs milliseconds for a large process: the kernel walks its page tables.
    """
    try:
        text = Path(f"/proc/{pid or 'self'}/smaps_rollup").read_text()
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def anonymous_bytes() -> int:
    """Anonymous resident memory of this process, bytes: the heap; cheap (a counter the kernel keeps)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def tree_pss_bytes(children: Iterable[int]) -> int:
    """PSS of this process and of the given child processes, bytes."""
    return pss_bytes() + sum(pss_bytes(pid) for pid in children)


def available_bytes() -> int:
    """Memory this process may use, bytes: the machine's, or the cgroup's limit where that is lower."""
    total = os.sysconf("SC_PHYS_PAGES") * _PAGE
    for name in _CGROUP_LIMITS:
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            total = min(total, int(text))
    return total


def _load_libc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
        libc.malloc_trim.argtypes = [ctypes.c_size_t]
    except (OSError, AttributeError):  # not glibc: its allocator has nothing to trim
        return None
    return libc


_LIBC = _load_libc()


def give_back_freed() -> None:
    """Return freed heap pages to the system, so that an unloaded model's memory is gone and measured as gone."""
    if _LIBC is not None:
        _LIBC.malloc_trim(0)
