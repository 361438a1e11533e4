"""Keeping usage: reads the meter every second, writes it to the database every few, drops what is too old.

A server that is killed loses what it has not written yet: one interval at most.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from octavo.serving.costs.meter import Meter
from octavo.serving.costs.table import UsageTable

SAMPLE_SECONDS = 1.0
MOST_KEPT = 200_000
"""Entries kept in memory while the database cannot be written; the oldest go first."""

_TIDY_SECONDS = 3600.0

log = logging.getLogger("octavo.serving.costs")


class Recording:
    """Writes a meter's amounts into a table.

    Args:
        meter: what is used.
        table: where it is kept.
        flush_seconds: how often it is written.
        days: how long rows are kept.
    """

    def __init__(self, meter: Meter, table: UsageTable, flush_seconds: float, days: int) -> None:
        self.meter = meter
        self.table = table
        self._flush_seconds = flush_seconds
        self._keep = timedelta(days=days)
        self._task: asyncio.Task[None] | None = None
        self._writes: set[asyncio.Task[None]] = set()
        self._stop = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()

    def start(self) -> None:
        """Begin; without it nothing is written."""
        self._task = asyncio.create_task(self._record())

    async def close(self) -> None:
        """Write the rest and stop."""
        if self._task is None:
            return
        self._stop.set()
        await self._task
        await self.flush()

    async def flush(self) -> None:
        """Write what was used until now; what cannot be written is kept."""
        # Whoever waits may be cancelled; what was taken off the meter is still written, or put back.
        write = asyncio.create_task(self._write())
        self._writes.add(write)
        write.add_done_callback(self._writes.discard)
        await asyncio.shield(write)

    async def _write(self) -> None:
        async with self._one_at_a_time:
            self.meter.sample()
            usage, capacity = self.meter.take()
            try:
                await asyncio.to_thread(self.table.add, usage, capacity)
            except Exception as error:  # whatever it is, metering goes on
                self.meter.put_back(usage, capacity)
                dropped = self.meter.forget(MOST_KEPT)
                lost = f", the oldest {dropped} entries are lost" if dropped else ""
                log.warning("usage is kept in memory, the database cannot be written%s: %s", lost, error)

    async def _record(self) -> None:
        flushed = time.monotonic()
        tidied = -_TIDY_SECONDS
        while not self._stop.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), min(SAMPLE_SECONDS, self._flush_seconds))
            self.meter.sample()
            if time.monotonic() - flushed >= self._flush_seconds:
                await self.flush()
                flushed = time.monotonic()
            if time.monotonic() - tidied >= _TIDY_SECONDS:
                tidied = time.monotonic()
                await self._tidy()

    async def _tidy(self) -> None:
        try:
            await asyncio.to_thread(self.table.forget, datetime.now(UTC) - self._keep)
        except Exception as error:  # whatever it is, metering goes on
            log.warning("old usage stays for now: %s", error)
