"""Dynamic batching over many models: worker threads pull the oldest work, together with what fits beside it.

Nothing waits for a batch to fill unless the model's configuration asks for it: while every thread computes, requests
gather, and the next free thread takes a fair share of them. Only pieces of like shape and like length are padded
together, so a 12-token text never pays for a 512-token neighbour.
"""

from __future__ import annotations

import asyncio
import bisect
import itertools
import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from octavo.errors import Busy, DeadlineExceeded, ModelFailed, OctavoError, Unavailable

log = logging.getLogger("octavo.serving.batching")


@dataclass(slots=True)
class Piece:
    """The smallest part of a request that may travel in a batch of its own: a text, or a whole tensor request.

    Attributes:
        payload: what the model's task computes on.
        shape: pieces of different shapes never meet.
        length: along the padded axis (tokens); 0 where nothing is padded.
        rows: of the batch axis this piece fills.
    """

    payload: Any
    shape: Hashable = None
    length: int = 0
    rows: int = 1


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How far a model's batches may grow.

    Attributes:
        max_rows: rows per batch.
        token_budget: padded tokens (rows times longest) per batch, where pieces have a length.
        length_window: relative spread of lengths in one batch, 0 to 1.
        max_queue: requests waiting; more are refused.
        max_delay: seconds the oldest piece may wait for company while fewer than `preferred_rows` wait.
        preferred_rows: enough rows not to wait for more.
        concurrency: batches of this model at once.
    """

    max_rows: int = 64
    token_budget: int = 256
    length_window: float = 0.25
    max_queue: int = 512
    max_delay: float = 0.0
    preferred_rows: int = 0
    concurrency: int = 64


class Task(Protocol):
    """The part of a loaded model that computes batches."""

    def run(self, pieces: Sequence[Piece]) -> list[Any]:
        """One result per piece, in order; called from a worker thread."""
        ...


class _Ticket:
    """One request in the queue: its pieces' results come together here."""

    __slots__ = ("future", "missing", "results")

    def __init__(self, pieces: int, future: asyncio.Future[list[Any]]) -> None:
        self.future = future
        self.results: list[Any] = [None] * pieces
        self.missing = pieces

    @property
    def dead(self) -> bool:
        return self.future.done()


@dataclass(slots=True)
class _Entry:
    rank: tuple[int, int]  # priority, then arrival
    arrived: float
    piece: Piece
    index: int
    ticket: _Ticket


def _rank(entry: _Entry) -> tuple[int, int]:
    return entry.rank


@dataclass(slots=True)
class BatchReport:
    """What one batch was: rows, tokens without padding, longest piece; seconds waited (over all pieces), computed."""

    rows: int
    tokens: int
    longest: int
    waited: float
    computed: float
    failed: int


class Queue:
    """The waiting pieces of one model. Made by `Batcher.queue`; its fields are guarded by the batcher's lock."""

    def __init__(self, name: str, task: Task, limits: BatchLimits, report: Callable[[BatchReport], None]) -> None:
        self.name = name
        self.task = task
        self.limits = limits
        self.report = report
        self.entries: list[_Entry] = []  # always in order of rank
        self.requests = 0
        self.running = 0
        self.closed = False


class Batcher:
    """Worker threads shared by all models; each thread runs one single-threaded batch at a time.

    With one thread per core and single-threaded sessions, two models never fight over the same core.

    Args:
        threads: batches computed at once over all models.
        max_pending: requests waiting over all models; more are refused (503).
    """

    def __init__(self, threads: int, max_pending: int) -> None:
        self.threads = threads
        self._max_pending = max_pending
        self._lock = threading.Condition()
        self._queues: list[Queue] = []
        self._idle = 0
        self._pending = 0
        self._stopped = False
        self._order = itertools.count()
        self._workers = [
            threading.Thread(target=self._work, name=f"octavo-run-{i}", daemon=True) for i in range(threads)
        ]
        for worker in self._workers:
            worker.start()

    @property
    def pending(self) -> int:
        """Requests waiting or computing over all models."""
        return self._pending

    def queue(self, name: str, task: Task, limits: BatchLimits, report: Callable[[BatchReport], None]) -> Queue:
        """A queue for a model that has just been loaded."""
        queue = Queue(name, task, limits, report)
        with self._lock:
            self._queues.append(queue)
        return queue

    def drop(self, queue: Queue) -> None:
        """Forget a queue whose model leaves; what still waits in it gets `Unavailable`."""
        with self._lock:
            queue.closed = True
            left = queue.entries
            queue.entries = []
            if queue in self._queues:
                self._queues.remove(queue)
        error = Unavailable("the model was unloaded while the request waited", queue.name, "Send it again.")
        for ticket in {id(entry.ticket): entry.ticket for entry in left}.values():
            _post(ticket.future, _fail, ticket.future, error)

    async def run(self, queue: Queue, pieces: Sequence[Piece], *, priority: int = 0, deadline: float) -> list[Any]:
        """Compute pieces, in whatever batches they end up in.

        Args:
            queue: the model's.
            pieces: at least one.
            priority: smaller goes first.
            deadline: `time.monotonic()` seconds.

        Raises:
            Busy: the model's queue is full.
            Unavailable: the server's queue is full, or the model left.
            DeadlineExceeded: no result in time; pieces not yet started are dropped.
            OctavoError: what the model said.
        """
        loop = asyncio.get_running_loop()
        ticket = _Ticket(len(pieces), loop.create_future())
        self._enter(queue, pieces, ticket, priority)
        timer = loop.call_later(
            max(0.0, deadline - time.monotonic()),
            _fail,
            ticket.future,
            DeadlineExceeded("the deadline passed before the answer was ready", queue.name, "Allow more time."),
        )
        try:
            return await ticket.future
        finally:
            timer.cancel()
            with self._lock:
                queue.requests -= 1
                self._pending -= 1

    def _enter(self, queue: Queue, pieces: Sequence[Piece], ticket: _Ticket, priority: int) -> None:
        now = time.monotonic()
        with self._lock:
            if queue.closed or self._stopped:
                raise Unavailable("the model is leaving memory", queue.name, "Send it again.")
            if self._pending >= self._max_pending:
                raise Unavailable(
                    f"{self._pending} requests wait already", "server", "Wait, or raise serving.max_pending."
                )
            if queue.requests >= queue.limits.max_queue:
                raise Busy(f"{queue.requests} requests wait already", queue.name, "Wait, or raise serving.max_queue.")
            queue.requests += 1
            self._pending += 1
            for index, piece in enumerate(pieces):
                entry = _Entry((priority, next(self._order)), now, piece, index, ticket)
                if queue.entries and queue.entries[-1].rank > entry.rank:
                    bisect.insort(queue.entries, entry, key=_rank)
                else:
                    queue.entries.append(entry)
            self._lock.notify(min(len(pieces), self.threads))

    def close(self) -> None:
        """Stop the threads after their current batch."""
        with self._lock:
            self._stopped = True
            self._lock.notify_all()
        for worker in self._workers:
            worker.join(timeout=5)

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            queue, entries = taken
            _compute(queue, entries)
            with self._lock:
                queue.running -= 1
                if queue.entries:
                    self._lock.notify()

    def _take(self) -> tuple[Queue, list[_Entry]] | None:
        """Wait for work and take one batch of the queue whose head is first; None when stopped."""
        with self._lock:
            self._idle += 1
            try:
                while not self._stopped:
                    queue, wait = self._first()
                    if queue is not None:
                        entries = self._pick(queue)
                        if entries:
                            queue.running += 1
                            return queue, entries
                        continue
                    self._lock.wait(wait)
            finally:
                self._idle -= 1
        return None

    def _first(self) -> tuple[Queue | None, float | None]:
        """The queue to serve now, or how long (seconds, None for ever) to wait for one to ripen."""
        now = time.monotonic()
        best: Queue | None = None
        wait: float | None = None
        for queue in self._queues:
            if not queue.entries or queue.running >= queue.limits.concurrency:
                continue
            ripe_in = _ripe_in(queue, now)
            if ripe_in > 0:
                wait = ripe_in if wait is None else min(wait, ripe_in)
            elif best is None or queue.entries[0].rank < best.entries[0].rank:
                best = queue
        return best, wait

    def _pick(self, queue: Queue) -> list[_Entry]:
        """Take the head of the queue and what fits beside it, oldest first; entries nobody waits for fall away."""
        waiting = [entry for entry in queue.entries if not entry.ticket.dead]
        batch = gather(waiting, queue.limits, share=max(1, self._idle)) if waiting else []
        taken = {entry.rank for entry in batch}
        queue.entries = [entry for entry in waiting if entry.rank not in taken]
        return batch


def gather(waiting: Sequence[_Entry], limits: BatchLimits, share: int) -> list[_Entry]:
    """The batch to run now: the first entry and later ones of its shape, within limits.

    Args:
        waiting: in order of service; not empty.
        limits: of the model.
        share: how many threads are free; each takes no more than its part of the rows that could go together.
    """
    head = waiting[0].piece
    low, high = head.length * (1 - limits.length_window), head.length * (1 + limits.length_window)
    alike = [e for e in waiting if e.piece.shape == head.shape and low <= e.piece.length <= high]
    most = min(limits.max_rows, -(-sum(e.piece.rows for e in alike) // share))
    batch: list[_Entry] = []
    rows = longest = 0
    for entry in alike:
        grown, reach = rows + entry.piece.rows, max(longest, entry.piece.length)
        if batch and (grown > most or grown * reach > limits.token_budget):
            continue
        batch.append(entry)
        rows, longest = grown, reach
        if rows >= most:
            break
    return batch


def _ripe_in(queue: Queue, now: float) -> float:
    """Seconds until the head need not wait for company any more; 0 or less when it goes now."""
    limits = queue.limits
    if limits.max_delay <= 0:
        return 0.0
    rows = 0
    for entry in queue.entries:
        rows += entry.piece.rows
        if rows >= (limits.preferred_rows or limits.max_rows):
            return 0.0
    return queue.entries[0].arrived + limits.max_delay - now


def _compute(queue: Queue, entries: list[_Entry]) -> None:
    """Run one batch and hand its results to the loops that wait."""
    started = time.monotonic()
    outcomes = _outcomes(queue, [entry.piece for entry in entries])
    queue.report(
        BatchReport(
            rows=sum(entry.piece.rows for entry in entries),
            tokens=sum(entry.piece.length * entry.piece.rows for entry in entries),
            longest=max(entry.piece.length for entry in entries),
            waited=sum(started - entry.arrived for entry in entries),
            computed=time.monotonic() - started,
            failed=sum(isinstance(outcome, Exception) for outcome in outcomes),
        )
    )
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[_Entry, Any]]] = {}
    for entry, outcome in zip(entries, outcomes, strict=True):
        by_loop.setdefault(entry.ticket.future.get_loop(), []).append((entry, outcome))
    for loop, pairs in by_loop.items():
        if not loop.is_closed():
            loop.call_soon_threadsafe(_deliver, pairs)


def _outcomes(queue: Queue, pieces: list[Piece]) -> list[Any]:
    """A result or an error per piece. A batch that fails is tried piece by piece: neighbours do not pay for one."""
    try:
        return queue.task.run(pieces)
    except Exception as problem:
        if len(pieces) > 1 and not isinstance(problem, (DeadlineExceeded, Unavailable)):
            return [outcome for piece in pieces for outcome in _outcomes(queue, [piece])]
        if isinstance(problem, OctavoError):
            return [problem] * len(pieces)
        log.exception("model %s failed", queue.name)
        return [ModelFailed("the model failed on this request", queue.name, "The server's log has the cause.")]


def _deliver(outcomes: list[tuple[_Entry, Any]]) -> None:
    for entry, outcome in outcomes:
        ticket = entry.ticket
        if ticket.future.done():
            continue
        if isinstance(outcome, Exception):
            ticket.future.set_exception(outcome)
            continue
        ticket.results[entry.index] = outcome
        ticket.missing -= 1
        if ticket.missing == 0:
            ticket.future.set_result(ticket.results)


def _fail(future: asyncio.Future[list[Any]], error: OctavoError) -> None:
    if not future.done():
        future.set_exception(error)


def _post(future: asyncio.Future[list[Any]], call: Callable[..., None], *arguments: Any) -> None:
    loop = future.get_loop()
    if not loop.is_closed():
        loop.call_soon_threadsafe(call, *arguments)
