"""What may travel together: pieces of like shape and like length, oldest first, within a model's limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any


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


def unmetered(_seconds: float) -> None:
    """Nobody asks what it cost."""


class Ticket:
    """One request in the queue: its pieces' results come together here; `spent` is told their CPU-seconds."""

    __slots__ = ("future", "missing", "results", "spent", "started")

    def __init__(
        self, pieces: int, future: asyncio.Future[list[Any]], spent: Callable[[float], None] = unmetered
    ) -> None:
        self.future = future
        self.spent = spent
        self.results: list[Any] = [None] * pieces
        self.missing = pieces
        self.started = False

    @property
    def dead(self) -> bool:
        return self.future.done()


@dataclass(slots=True)
class Entry:
    rank: tuple[int, int]  # priority, then arrival
    arrived: float
    piece: Piece
    index: int
    ticket: Ticket


def rank_of(entry: Entry) -> tuple[int, int]:
    return entry.rank


def gather(waiting: Sequence[Entry], limits: BatchLimits, share: int) -> list[Entry]:
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
    batch: list[Entry] = []
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


def ripe_in(entries: Sequence[Entry], limits: BatchLimits, now: float) -> float:
    """Seconds until the head need not wait for company any more; 0 or less when it goes now."""
    if limits.max_delay <= 0:
        return 0.0
    rows = 0
    for entry in entries:
        rows += entry.piece.rows
        if rows >= (limits.preferred_rows or limits.max_rows):
            return 0.0
    return entries[0].arrived + limits.max_delay - now
