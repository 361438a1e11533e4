"""What memory is really held: proportional set size (PSS) of processes, and what the machine or cgroup has.

PSS counts a page shared by n mappings as 1/n of it in each, so weights mapped by a hundred copies of a model count
once. RSS counts them a hundred times and USS not at all; neither can be a budget's yardstick.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path, PurePosixPath

_PAGE = os.sysconf("SC_PAGE_SIZE")
_SMAPS_CHUNK = 2**16
_LAST_LINE = b"\nVmFlags:"  # of each mapping
_PROGRAM = os.fsencode(os.path.realpath(sys.executable))
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


def mapped_bytes() -> int:
    """Pages of files that this process maps, bytes: data files by PSS, programs and libraries by RSS.

    Weights are shared page by page, within this process and with others. Libraries are mapped once here, and their PSS
    would rise and fall with every other program on the machine that uses them. Costs a tenth of a second when hundreds
    of models are mapped: the kernel walks their page tables.
    """
    held, rest = 0, b""
    try:
        with Path("/proc/self/smaps").open("rb", buffering=0) as stream:
            while chunk := stream.read(_SMAPS_CHUNK):
                *mappings, rest = (rest + chunk).split(_LAST_LINE)
                held += sum(map(_file_kilobytes, mappings))
    except OSError:
        return 0
    return held * 1024


def _file_kilobytes(mapping: bytes) -> int:
    """What one entry of smaps holds of a file; private copies of its pages are heap."""
    head = mapping[: mapping.find(b"\nSize:")].rpartition(b"\n")[2].split(None, 5)
    if len(head) < 6 or head[4] == b"0":  # no inode: the heap, a stack
        return 0
    is_program = head[5] == _PROGRAM or b".so" in head[5].rpartition(b"/")[2]
    return max(0, _kilobytes(mapping, b"\nRss:" if is_program else b"\nPss:") - _kilobytes(mapping, b"\nAnonymous:"))


def _kilobytes(mapping: bytes, name: bytes) -> int:
    at = mapping.find(name) + len(name)
    return int(mapping[at : mapping.find(b" kB", at)])


def available_bytes() -> int:
    """Memory this process may use, bytes: the machine's, or the cgroup's limit where that is lower."""
    total = os.sysconf("SC_PHYS_PAGES") * _PAGE
    for name in (*_CGROUP_LIMITS, *_own_cgroup_limits()):
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            total = min(total, int(text))
    return total


def _own_cgroup_limits() -> list[str]:
    """Where this process's own cgroup (version 2) and those above it have their limits."""
    try:
        line = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    own = PurePosixPath(line.removeprefix("0::"))
    return [f"/sys/fs/cgroup{group}/memory.max" for group in (own, *own.parents) if group.name]


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
