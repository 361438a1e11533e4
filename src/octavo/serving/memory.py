"""What memory is really held: proportional set size (PSS) of processes, and what the machine or cgroup has.

PSS counts a page shared by n mappings as 1/n of it in each, so weights mapped by a hundred copies of a model count
once. RSS counts them a hundred times and USS not at all; neither can be a budget's yardstick.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

_PAGE = os.sysconf("SC_PAGE_SIZE")
_SMAPS_CHUNK = 2**16
_LAST_LINE = b"\nVmFlags:"  # of each mapping
_LIBRARY = re.compile(rb"\.so(\.\d+)*( \(deleted\))?$")
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
    """Anonymous resident memory of this process, bytes: the heap; cheap (counters the kernel keeps)."""
    _, resident, shared, *_ = os.pread(_counters(os.getpid()), 128, 0).split()
    return (int(resident) - int(shared)) * _PAGE


@lru_cache(maxsize=1)
def _counters(_pid: int) -> int:
    """The open file of this process's counters; a fork needs one of its own."""
    return os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)


@dataclass(frozen=True, slots=True)
class MappedFiles:
    """Pages of files that this process maps, bytes: of programs and libraries, and of data files by their folder."""

    programs: int
    data: Mapping[str, int]

    @property
    def total(self) -> int:
        """All of them."""
        return self.programs + sum(self.data.values())


def mapped_files() -> MappedFiles:
    """What this process maps: data files by PSS, programs and libraries by RSS.

    Weights are shared page by page, within this process and with others. Libraries are mapped once here, and their PSS
    would rise and fall with every other program on the machine that uses them. Costs a tenth of a second when hundreds
    of models are mapped: the kernel walks their page tables.
    """
    programs, data, rest = 0, defaultdict[bytes, int](int), b""
    try:
        with Path("/proc/self/smaps").open("rb", buffering=0) as stream:
            while chunk := stream.read(_SMAPS_CHUNK):
                *mappings, rest = (rest + chunk).split(_LAST_LINE)
                for mapping in mappings:
                    file = _file_of(mapping)
                    if file == _PROGRAM or _LIBRARY.search(file):
                        programs += _held(mapping, b"\nRss:")
                    elif file:
                        data[file.rpartition(b"/")[0]] += _held(mapping, b"\nPss:")
    except OSError:
        return MappedFiles(0, {})
    return MappedFiles(programs, {os.fsdecode(folder): size for folder, size in data.items()})


def _file_of(mapping: bytes) -> bytes:
    """The file that one entry of smaps maps; empty for the heap and stacks, which have none."""
    head = mapping[: mapping.find(b"\nSize:")].rpartition(b"\n")[2].split(None, 5)
    return head[5] if len(head) == 6 and head[4] != b"0" else b""


def _held(mapping: bytes, name: bytes) -> int:
    """Bytes one entry of smaps holds of its file; private copies of its pages are heap."""
    return max(0, _kilobytes(mapping, name) - _kilobytes(mapping, b"\nAnonymous:")) * 1024


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
