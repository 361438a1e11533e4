"""Tensors handed to another process through anonymous shared memory: one write, one read, nothing in between.

A `Segment` is a memfd that its writer grows and both sides map. The file is sealed against shrinking, so a process that
reads it cannot be killed by one that truncates it. What lies where is told in a `Place`, sent over the control channel.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
from collections.abc import Iterable, Sequence

import numpy as np

from octavo.serving.tensors import NUMPY_OF, Array, Tensors, datatype_of, decode_bytes, encode_bytes

Place = tuple[str, str, list[int], int, int]
"""Name, KServe datatype, shape, offset and size in bytes."""

KEEP = 16 * 2**20
"""Bytes a segment keeps between calls; pages beyond are given back, so one huge call does not cost memory for ever."""

_ALIGN = 64
_GRAIN = 64 * 1024
_F_ADD_SEALS = 1033
_SEAL_SEAL, _SEAL_SHRINK = 1, 2


class Segment:
    """One growing piece of shared memory. The writer calls `reserve`, the reader `attach`; both then use `view`."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.size = 0
        self._map: mmap.mmap | None = None

    @classmethod
    def create(cls, name: str) -> Segment:
        """A new, empty segment; `name` shows in `/proc/<pid>/maps` only."""
        descriptor = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        fcntl.fcntl(descriptor, _F_ADD_SEALS, _SEAL_SHRINK | _SEAL_SEAL)
        return cls(descriptor)

    def reserve(self, size: int) -> None:
        """Make room for `size` bytes, as the segment's one writer.

        Raises:
            OSError: no memory or address space is left.
        """
        if size > self.size:
            grown = -(-max(size, self.size * 5 // 4) // _GRAIN) * _GRAIN
            os.ftruncate(self.descriptor, grown)
            self._remap(grown)

    def attach(self, size: int) -> None:
        """Map at least `size` bytes that the writer has reserved.

        Raises:
            ValueError: the segment is shorter.
        """
        if size > self.size:
            there = os.fstat(self.descriptor).st_size
            if size > there:
                raise ValueError(f"{size} bytes of shared memory announced, {there} there")
            self._remap(there)

    def view(self) -> memoryview:
        """The bytes mapped; arrays made on it keep the mapping alive after `close`."""
        if self._map is None:
            self._remap(_GRAIN if os.fstat(self.descriptor).st_size else self._first_grain())
        assert self._map is not None
        return memoryview(self._map)

    def give_back(self) -> None:
        """Free the pages beyond `KEEP`; call it when nobody needs the content any more."""
        if self._map is not None and self.size > KEEP:
            self._map.madvise(mmap.MADV_REMOVE, KEEP, self.size - KEEP)

    def close(self) -> None:
        """Let go; arrays still held on the memory stay valid."""
        self._map = None
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _first_grain(self) -> int:
        os.ftruncate(self.descriptor, _GRAIN)
        return _GRAIN

    def _remap(self, size: int) -> None:
        # The old map is dropped, not closed: whoever holds an array on it keeps it, everybody else lets it go here.
        self._map = None
        self.size = 0
        self._map = mmap.mmap(self.descriptor, size)
        self.size = size


def write_tensors(segment: Segment, groups: Iterable[Tensors]) -> list[list[Place]]:
    """Write every group's tensors behind each other into `segment`, growing it as needed.

    Returns:
        Per group, where its tensors lie.

    Raises:
        Invalid: a dtype has no KServe datatype.
        OSError: no memory is left.
    """
    plan: list[list[Place]] = []
    sources: list[tuple[int, Array | bytes]] = []
    end = 0
    for tensors in groups:
        places: list[Place] = []
        for name, array in tensors.items():
            datatype = datatype_of(array)
            source = encode_bytes(array) if datatype == "BYTES" else array
            size = len(source) if isinstance(source, bytes) else source.nbytes
            places.append((name, datatype, list(array.shape), end, size))
            sources.append((end, source))
            end += -(-size // _ALIGN) * _ALIGN
        plan.append(places)
    segment.reserve(max(end, 1))
    view = segment.view()
    for at, source in sources:
        if isinstance(source, bytes):
            view[at : at + len(source)] = source
        elif source.nbytes:
            np.ndarray(source.shape, source.dtype, buffer=view, offset=at)[...] = source
    return plan


def extent(plan: Sequence[Sequence[Place]]) -> int:
    """The bytes a plan reaches to."""
    return max((place[3] + place[4] for places in plan for place in places), default=0)


def read_tensors(segment: Segment, places: Sequence[Place], *, copy: bool) -> Tensors:
    """The tensors at `places`. BYTES are always copied; others only with `copy`, else they lie on the shared memory.

    Raises:
        ValueError: a place lies outside the segment or its size does not fit its shape.
        Invalid: BYTES data that is not in wire form.
    """
    view = segment.view()
    tensors: Tensors = {}
    for name, datatype, dims, at, size in places:
        shape = tuple(dims)
        if at < 0 or size < 0 or at + size > segment.size or any(axis < 0 for axis in shape):
            raise ValueError(f"tensor {name!r} lies outside the shared memory")
        if datatype == "BYTES":
            tensors[name] = decode_bytes(view[at : at + size], shape, name)
            continue
        dtype = NUMPY_OF[datatype]
        if math.prod(shape) * dtype.itemsize != size:
            raise ValueError(f"tensor {name!r} has {size} bytes, shape {list(shape)} of {datatype} needs others")
        array: Array = np.ndarray(shape, dtype, buffer=view, offset=at) if size else np.empty(shape, dtype)
        tensors[name] = array.copy() if copy and size else array
    return tensors
