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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from octavo.errors import Busy, DeadlineExceeded, ModelFailed, OctavoError, Unavailable
from octavo.serving.gathering import BatchLimits, Entry, Piece, Ticket, gather, rank_of, ripe_in, unmetered

log = logging.getLogger("octavo.serving.batching")


class Task(Protocol):
    """The part of a loaded model that computes batches."""

    def run(self, pieces: Sequence[Piece]) -> list[Any]:
        """One result per piece, in order; called from a worker thread."""
        ...


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

    def __init__(
        self, name: str, task: Task, limits: BatchLimits, report: Callable[[BatchReport], None], crew: Crew
    ) -> None:
        self.name = name
        self.task = task
        self.limits = limits
        self.report = report
        self.crew = crew
        self.entries: list[Entry] = []  # always in order of rank
        self.requests = 0
        self.running = 0
        self.closed = False


class Crew:
    """Threads that take batches from some queues, in the order in which their first pieces came.

    Args:
        lock: the batcher's; it guards everything here.
        threads: batches at once.
        name: of the threads.
    """

    def __init__(self, lock: threading.Lock, threads: int, name: str) -> None:
        self.waiting: set[Queue] = set()  # those with entries; of thousands of models only these are looked at
        self.ready = threading.Condition(lock)
        self._idle = 0
        self._stopped = False
        self.threads = [threading.Thread(target=self._work, name=f"{name}-{i}", daemon=True) for i in range(threads)]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """Let the threads end after their current batch; called with the lock held."""
        self._stopped = True
        self.ready.notify_all()

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            queue, entries = taken
            _compute(queue, entries)
            with self.ready:
                queue.running -= 1
                if queue.entries:
                    self.ready.notify()

    def _take(self) -> tuple[Queue, list[Entry]] | None:
        """Wait for work and take one batch; None when stopped."""
        with self.ready:
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
                    self.ready.wait(wait)
            finally:
                self._idle -= 1
        return None

    def _first(self) -> tuple[Queue | None, float | None]:
        """The queue to serve now, or how long (seconds, None for ever) to wait for one to ripen.

        Of several it is the one whose first piece came first. Priorities count within a model: else one model would
        starve others.
        """
        now = time.monotonic()
        best: Queue | None = None
        wait: float | None = None
        for queue in self.waiting:
            if queue.running >= queue.limits.concurrency:
                continue
            left = ripe_in(queue.entries, queue.limits, now)
            if left > 0:
                wait = left if wait is None else min(wait, left)
            elif best is None or queue.entries[0].rank[1] < best.entries[0].rank[1]:
                best = queue
        return best, wait

    def _pick(self, queue: Queue) -> list[Entry]:
        """Take the head of the queue and what fits beside it, oldest first; entries nobody waits for fall away."""
        waiting = [entry for entry in queue.entries if not entry.ticket.dead]
        batch = gather(waiting, queue.limits, share=max(1, self._idle)) if waiting else []
        taken = {entry.rank for entry in batch}
        for entry in batch:
            entry.ticket.started = True
        queue.entries = [entry for entry in waiting if entry.rank not in taken]
        if not queue.entries:
            self.waiting.discard(queue)
        return batch


class Batcher:
    """One crew computes for all models that run in this process; each of its threads runs one batch at a time.

    With one thread per core and single-threaded sessions, two models never fight over the same core. A model whose work
    is done by other processes has a crew of its own, which only waits: one that hangs holds up nobody else.

    Args:
        threads: batches computed at once in this process.
        max_pending: requests waiting over all models; more are refused (503).
    """

    def __init__(self, threads: int, max_pending: int) -> None:
        self._max_pending = max_pending
        self._lock = threading.Lock()
        self._crew = Crew(self._lock, threads, "octavo-run")
        self._apart: list[Crew] = []
        self._pending = 0
        self._stopped = False
        self._order = itertools.count()

    @property
    def pending(self) -> int:
        """Requests waiting or computing over all models."""
        return self._pending

    def queue(
        self,
        name: str,
        task: Task,
        limits: BatchLimits,
        report: Callable[[BatchReport], None],
        *,
        apart: bool = False,
    ) -> Queue:
        """A queue for a model that has just been loaded; `apart` for one whose work other processes do."""
        crew = Crew(self._lock, limits.concurrency, f"octavo-wait-{name}") if apart else self._crew
        queue = Queue(name, task, limits, report, crew)
        if apart:
            with self._lock:
                self._apart.append(crew)
        return queue

    def drop(self, queue: Queue) -> None:
        """Forget a queue whose model leaves; what still waits in it gets `Unavailable`."""
        with self._lock:
            queue.closed = True
            left = queue.entries
            queue.entries = []
            queue.crew.waiting.discard(queue)
            if queue.crew in self._apart:
                self._apart.remove(queue.crew)
                queue.crew.stop()
        error = Unavailable("the model was unloaded while the request waited", queue.name, "Send it again.")
        for ticket in {id(entry.ticket): entry.ticket for entry in left}.values():
            _post(ticket.future, _fail, ticket.future, error)

    async def run(
        self,
        queue: Queue,
        pieces: Sequence[Piece],
        *,
        priority: int = 0,
        deadline: float,
        patience: float = 0.0,
        spent: Callable[[float], None] = unmetered,
    ) -> list[Any]:
        """Compute pieces, in whatever batches they end up in.

        Args:
            queue: the model's.
            pieces: at least one.
            priority: smaller goes first.
            deadline: `time.monotonic()` seconds.
            patience: seconds the request may wait for its first piece to be taken; 0 means until the deadline.
            spent: told, on the event loop, the CPU-seconds of every piece that was computed, wanted still or not: its
                part of its batch's by rows times length.

        Raises:
            Busy: the model's queue is full.
            Unavailable: the server's queue is full, or the model left.
            DeadlineExceeded: no result in time; pieces not yet started are dropped.
            OctavoError: what the model said.
        """
        loop = asyncio.get_running_loop()
        ticket = Ticket(len(pieces), loop.create_future(), spent)
        self._enter(queue, pieces, ticket, priority)
        late = DeadlineExceeded("the deadline passed before the answer was ready", queue.name, "Allow more time.")
        timers = [loop.call_later(max(0.0, deadline - time.monotonic()), _fail, ticket.future, late)]
        if patience:
            timers.append(loop.call_later(patience, _give_up, ticket, queue.name))
        try:
            return await ticket.future
        finally:
            for timer in timers:
                timer.cancel()
            with self._lock:
                queue.requests -= 1
                self._pending -= 1

    def _enter(self, queue: Queue, pieces: Sequence[Piece], ticket: Ticket, priority: int) -> None:
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
                entry = Entry((priority, next(self._order)), now, piece, index, ticket)
                if queue.entries and queue.entries[-1].rank > entry.rank:
                    bisect.insort(queue.entries, entry, key=rank_of)
                else:
                    queue.entries.append(entry)
            queue.crew.waiting.add(queue)
            queue.crew.ready.notify(min(len(pieces), len(queue.crew.threads)))

    def close(self) -> None:
        """Stop the threads after their current batch."""
        with self._lock:
            self._stopped = True
            crews = [self._crew, *self._apart]
            for crew in crews:
                crew.stop()
        for crew in crews:
            for thread in crew.threads:
                thread.join(timeout=5)


def _compute(queue: Queue, entries: list[Entry]) -> None:
    """Run one batch and hand its results to the loops that wait."""
    started, cpu = time.monotonic(), time.thread_time()
    outcomes = _outcomes(queue, [entry.piece for entry in entries])
    cpu = time.thread_time() - cpu
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
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Entry, Any, float]]] = {}
    for entry, outcome, spent in zip(entries, outcomes, _parts(entries, cpu), strict=True):
        by_loop.setdefault(entry.ticket.future.get_loop(), []).append((entry, outcome, spent))
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


def _parts(entries: Sequence[Entry], seconds: float) -> list[float]:
    """A batch's CPU-seconds shared out over its pieces by rows times length."""
    weights = [entry.piece.rows * max(1, entry.piece.length) for entry in entries]
    whole = sum(weights) or 1
    return [seconds * weight / whole for weight in weights]


def _deliver(outcomes: list[tuple[Entry, Any, float]]) -> None:
    for entry, outcome, spent in outcomes:
        ticket = entry.ticket
        ticket.spent(spent)
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


def _give_up(ticket: Ticket, name: str) -> None:
    if not ticket.started:
        what = "the request waited longer than the model's queue policy allows"
        _fail(ticket.future, DeadlineExceeded(what, name, "Ask again when less is waiting."))


def _post(future: asyncio.Future[list[Any]], call: Callable[..., None], *arguments: Any) -> None:
    loop = future.get_loop()
    if not loop.is_closed():
        loop.call_soon_threadsafe(call, *arguments)
