"""The memory ledger: what resident models really hold, and what each is charged.

The total is measured, never summed from guesses: this process's heap above what it was before any model came, the
file pages its models map (each page once, however many models map it), and the PSS of the processes beside it. A
model is charged what loads of its contents have made the heap grow by; weights shared by several models are a charge
of their own; what grew while nothing loaded (buffers of running batches) is the runtime's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from octavo.serving.memory import MappedFiles, anonymous_bytes, give_back_freed, mapped_files, pss_bytes

_LOOKS_KEPT = 32


@dataclass(frozen=True, slots=True)
class Measure:
    """One look at memory, bytes: this process's heap, the files it maps, and the processes of each model."""

    heap: int
    files: MappedFiles
    children: Mapping[str, int]


def look(children: Mapping[str, Sequence[int]]) -> Measure:
    """Measure now, with the processes of each model beside this one; costs milliseconds."""
    beside = {key: sum(pss_bytes(pid) for pid in pids) for key, pids in children.items()}
    return Measure(anonymous_bytes(), mapped_files(), beside)


class OwnSize:
    """What one more load of the same contents adds to the heap, bytes: a mean, since every single look is noisy.

    The first look holds what later loads find there (a tokenizer, the allocator's pools); the second takes its place.
    """

    __slots__ = ("_looks", "mean")

    def __init__(self) -> None:
        self._looks = 0
        self.mean = 0.0

    def see(self, grown: int) -> None:
        """Take in the growth of one load; it may be negative."""
        self._looks += 1
        self.mean += (grown - self.mean) / min(max(1, self._looks - 1), _LOOKS_KEPT)


class Charges:
    """The ledger of one budget. Used on the event loop only.

    Args:
        budget: bytes.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._base = look({})
        self._last = self._base
        self._own: dict[str, int] = {}
        self._reserved: dict[str, int] = {}
        self._unmeasured: dict[str, int] = {}
        self._open: dict[str, int] = {}
        self._share_of: dict[str, str] = {}
        self._folders: dict[str, frozenset[str]] = {}
        self._shared: dict[str, int] = {}
        self._gone = 0
        self._too_large: dict[str, int] = {}
        self._weights: dict[str, int] = {}
        self._known: dict[str, int] = {}
        self._digests: dict[str, str] = {}
        self._grown: dict[str, int] = {}
        self._sizes: dict[str, OwnSize] = {}
        self._fit = 1.0
        self._mark = self._base.heap
        self._looking = asyncio.Lock()
        self._asked = self._seen = 0
        self._children: Mapping[str, Sequence[int]] = {}
        self._rebased = False

    def rebase(self) -> None:
        """Take what is held now as what is held without any model; only once, before the first load."""
        if not self._rebased:
            self._rebased = True
            give_back_freed()  # slack that a later trim returns would count as if models had given it back
            self._base = self._last = look({})
            self._mark = self._base.heap

    def charged(self) -> int:
        """Bytes held by models now: heap as of now, files and children as last measured."""
        heap = anonymous_bytes() - self._base.heap
        mapped = self._last.files.total - self._base.files.total - self._gone
        return max(0, heap + max(0, mapped) + sum(self._last.children.values()))

    def free(self) -> int:
        """Bytes of the budget that are neither held nor promised."""
        return self.budget - self.charged() - sum(self._reserved.values()) - self.unmeasured()

    def unmeasured(self) -> int:
        """Bytes promised to loads that have ended since the last look at memory."""
        return sum(self._unmeasured.values())

    def promised(self, key: str) -> bool:
        """Whether a load of the model has room and is under way."""
        return key in self._reserved

    def of(self, key: str) -> int:
        """What a model is charged by itself, bytes."""
        return int(self._own.get(key, 0) * self._fit) + self._last.children.get(key, 0)

    def shared(self, share_key: str) -> int:
        """What the weights behind a share key take, bytes."""
        return self._shared.get(share_key, 0) if share_key else 0

    def shares(self) -> dict[str, int]:
        """All shared weights in memory: share key to bytes."""
        return dict(self._shared)

    def too_large(self, digest: str, disk_bytes: int) -> int:
        """The size of a model known not to fit the budget, measured or by its files; 0 when it may fit."""
        if digest in self._too_large:
            return self._too_large[digest]
        return disk_bytes if digest not in self._known and disk_bytes > self.budget else 0

    def expected(self, digest: str, share_key: str, disk_bytes: int) -> int:
        """What a load will take: what it took before, its files at least; shared weights only for the first.

        What it took can measure as nothing, when another model's memory went at the same time; weights that came
        together with others may have been charged to those, but half of a file is read at least. Never more than the
        budget: weights measure larger while two forms of them are mapped.
        """
        own = max(self._known.get(digest, 0), 0 if share_key else disk_bytes)
        if share_key and share_key not in self._share_of.values():
            own += min(disk_bytes, max(self._weights.get(share_key, disk_bytes), disk_bytes // 2))
        return min(own, self.budget)

    def reserve(self, key: str, size: int) -> None:
        """Promise `size` bytes to a load that is about to begin."""
        self._reserved[key] = size

    def begin(self, key: str, expected: int, share_key: str) -> None:
        """A load begins: heap growth from now on is its own (shared out when several load at once)."""
        self._settle()
        self._open[key] = max(expected, 1)
        self._grown.setdefault(key, 0)
        if self._share_of.get(key) != share_key:
            self.share(key, share_key)

    def share(self, key: str, share_key: str, folders: Iterable[str] = ()) -> None:
        """A model maps weights, which others may map too, from files in these folders."""
        self._share_of[key] = share_key
        self._folders[key] = frozenset(folders)

    def end(self, key: str, digest: str, *, lasting: bool = True) -> None:
        """A load has ended; its promise becomes its charge, which the next load of the same contents will expect.

        `lasting` is false for a form that another will replace: later loads cannot be judged by it. What the heap does
        not show of the promise (mapped files, children) holds until they are measured. Weights that are shared end up
        mapped, whatever the heap shows of making them.
        """
        self._settle()
        grown = self._grown.get(key, 0)
        if lasting:
            self._sizes.setdefault(digest, OwnSize()).see(grown)
        size = self._sizes.get(digest)
        own = self._own[key] = max(0, int(size.mean) if size else grown)
        if size is not None:
            self._known[digest] = own
        self._digests[key] = digest
        self._open.pop(key, None)
        hidden = self._reserved.pop(key, 0) - (0 if self._share_of.get(key) else own)
        self._unmeasured[key] = max(self._unmeasured.get(key, 0), hidden)

    def drop(self, key: str) -> None:
        """A model has gone; what it gave back makes loads under way look smaller by just its charge."""
        own = self._own.pop(key, 0)
        self._settle(freed=own)
        for kept in (self._open, self._reserved, self._unmeasured, self._grown):
            kept.pop(key, None)
        self._folders.pop(key, None)
        share = self._share_of.pop(key, "")
        if share and share not in self._share_of.values():
            self._gone += self._shared.pop(share, 0)  # until it is measured again
        digest = self._digests.pop(key, "")
        if key in self._last.children:
            self._known[digest] = own + self._last.children[key]
            left = {name: size for name, size in self._last.children.items() if name != key}
            self._last = replace(self._last, children=left)

    def note_too_large(self, digest: str, size: int) -> None:
        """Remember that a model of these contents measured larger than the budget."""
        self._too_large[digest] = size

    async def measure(self, threads: Executor, children: Mapping[str, Sequence[int]]) -> None:
        """Look again at file pages and children, in a thread; who asks during a look shares the next one."""
        self._asked += 1
        mine, self._children = self._asked, dict(children)
        async with self._looking:
            if self._seen >= mine:
                return
            self._seen = self._asked
            ended = list(self._unmeasured)
            before = self._gone
            self._last = await asyncio.get_running_loop().run_in_executor(threads, look, self._children)
            self._gone -= before
            self._divide()
            for key in ended:
                self._unmeasured.pop(key, None)

    def _divide(self) -> None:
        """Charge what is mapped of each folder to the weights that lie there."""
        folders: dict[str, set[str]] = {}
        for key, share in self._share_of.items():
            if share:
                folders.setdefault(share, set()).update(self._folders[key])
        data = self._last.files.data
        self._shared = {share: sum(data.get(folder, 0) for folder in names) for share, names in folders.items()}
        self._weights |= self._shared

    def _settle(self, freed: int = 0) -> None:
        """Share out the heap's growth since the last look among the loads under way, by what each was expected to take.

        `freed` bytes were given back meanwhile.
        """
        heap = anonymous_bytes()
        grown, self._mark = heap - self._mark + freed, heap
        weights = sum(self._open.values())
        for key, weight in self._open.items():
            self._grown[key] += grown * weight // weights
        self._refit()

    def _refit(self) -> None:
        """Charges that are more than the heap has grown by are all taken for less, alike."""
        total, held = sum(self._own.values()), max(0, self._mark - self._base.heap)
        self._fit = min(1.0, held / total) if total else 1.0
