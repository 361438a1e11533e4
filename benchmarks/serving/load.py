"""The load generator: pre-built HTTP/1.1 requests over keep-alive connections, from a process of its own.

It parses no more of an answer than its length, so that it takes little from the cores the servers need
(under 0.1 CPU-ms per request); answers are checked by the caller afterwards.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import uvloop

_LONGEST_IDLE = 4.0  # seconds; servers close idle connections after 5 and more


@dataclass(frozen=True, slots=True)
class Answer:
    """One request's outcome: seconds from its due time to its last byte; status 0 when the connection broke."""

    index: int
    seconds: float
    status: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Load:
    """A finished run; `cpu_seconds` is what the generator itself took."""

    wall_seconds: float
    cpu_seconds: float
    answers: list[Answer]

    @property
    def seconds(self) -> list[float]:
        """All latencies."""
        return [answer.seconds for answer in self.answers]


def closed_loop(port: int, requests: Sequence[bytes], connections: int) -> Load:
    """Each connection sends its next request when the last is answered, until all are sent."""
    return in_own_process(_closed_loop, port, requests, connections)


def timed(port: int, requests: Sequence[bytes], due: Sequence[float], connections: int = 64) -> Load:
    """Requests sent at given times (seconds from the start, rising); those that find no free connection wait."""
    return in_own_process(_timed, port, requests, due, connections)


def in_own_process(run: Callable[..., Load], *arguments: object) -> Load:
    """What `run(*arguments)` finds in a process of its own; it runs on the cores that this one may use."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run, *arguments).result()


class _Connection(asyncio.Protocol):
    """One connection; `answered(connection)` is called when it is free, and when it is lost."""

    def __init__(
        self,
        answers: list[Answer],
        answered: Callable[[_Connection], None],
        opened: Callable[[_Connection], None] = lambda _: None,
    ) -> None:
        self._answers = answers
        self._answered = answered
        self._opened = opened
        self.used = time.perf_counter()
        self._index = -1
        self._buffer = bytearray()
        self._end = 0
        self._body_at = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self._opened(self)

    def send(self, index: int, request: bytes, due: float) -> None:
        """Send one request; the connection must be free."""
        self._index, self._due = index, due
        self.used = time.perf_counter()
        self._buffer.clear()
        self._end = 0
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._end:
            self._read_head()
        if self._end and len(self._buffer) >= self._end:
            self._record(int(self._buffer[9:12]), bytes(self._buffer[self._body_at : self._end]))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._index >= 0:
            self._record(0, str(exc).encode())
        else:
            self._answered(self)

    def _read_head(self) -> None:
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        at = self._buffer[:head].lower().find(b"\r\ncontent-length:")
        if at < 0:
            raise ValueError(f"an answer without Content-Length: {bytes(self._buffer[:head])!r}")
        length = int(self._buffer[at + 17 : self._buffer.find(b"\r\n", at + 17)])
        self._body_at = head + 4
        self._end = self._body_at + length

    def _record(self, status: int, body: bytes) -> None:
        self._answers.append(Answer(self._index, time.perf_counter() - self._due, status, body))
        self._index = -1
        self._answered(self)


async def _connect(
    port: int, count: int, answers: list[Answer], answered: Callable[[_Connection], None]
) -> list[_Connection]:
    loop = asyncio.get_running_loop()
    opened = [
        await loop.create_connection(lambda: _Connection(answers, answered), "127.0.0.1", port) for _ in range(count)
    ]
    return [connection for _, connection in opened]


def _closed_loop(port: int, requests: Sequence[bytes], connections: int) -> Load:
    async def run() -> Load:
        answers: list[Answer] = []
        waiting = deque(enumerate(requests))
        done = asyncio.Event()

        def next_one(connection: _Connection) -> None:
            if waiting and not connection.transport.is_closing():
                connection.send(*waiting.popleft(), time.perf_counter())
            elif len(answers) + len(waiting) == len(requests):  # nothing is in flight
                done.set()

        opened = await _connect(port, min(connections, len(requests)), answers, next_one)
        load = await measure(answers, done, lambda: [next_one(connection) for connection in opened])
        for connection in opened:
            connection.transport.close()
        return load

    return uvloop.run(run())


class _Pool:
    """At most `limit` connections, opened when they are needed; what finds none free waits in order."""

    def __init__(self, port: int, limit: int, answers: list[Answer], all_answered: Callable[[], None]) -> None:
        self._port = port
        self._limit = limit
        self._answers = answers
        self._all_answered = all_answered
        self._backlog: deque[tuple[int, bytes, float]] = deque()
        self._idle: list[_Connection] = []
        self._open = 0
        self._opening: set[asyncio.Task[None]] = set()

    def dispatch(self, index: int, request: bytes, due: float) -> None:
        """Send a request as soon as a connection is free."""
        self._backlog.append((index, request, due))
        self._pump()

    def close(self) -> None:
        """Close what is open and idle."""
        for connection in self._idle:
            connection.transport.close()

    def _pump(self) -> None:
        while self._backlog and (connection := self._take()) is not None:
            connection.send(*self._backlog.popleft())
        if self._backlog and self._open < self._limit:
            self._open += 1
            task = asyncio.create_task(self._connect())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    def _take(self) -> _Connection | None:
        """The connection used last; one that has long been idle may be about to be closed by the server."""
        while self._idle:
            connection = self._idle.pop()
            if time.perf_counter() - connection.used < _LONGEST_IDLE:
                return connection
            connection.transport.close()
        return None

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(self._new, "127.0.0.1", self._port)
        except OSError as error:
            self._open -= 1
            while self._backlog:
                index, _, due = self._backlog.popleft()
                self._answers.append(Answer(index, time.perf_counter() - due, 0, str(error).encode()))
            self._all_answered()

    def _new(self) -> _Connection:
        return _Connection(self._answers, self._free, self._free)

    def _free(self, connection: _Connection) -> None:
        if connection.transport.is_closing():
            self._open -= 1
            if connection in self._idle:
                self._idle.remove(connection)
        else:
            self._idle.append(connection)
        self._all_answered()
        self._pump()


def _timed(port: int, requests: Sequence[bytes], due: Sequence[float], connections: int) -> Load:
    async def run() -> Load:
        answers: list[Answer] = []
        done = asyncio.Event()
        pool = _Pool(port, connections, answers, lambda: done.set() if len(answers) == len(requests) else None)

        def start() -> None:
            loop, clock = asyncio.get_running_loop(), time.perf_counter()
            for index, offset in enumerate(due):
                loop.call_later(offset, pool.dispatch, index, requests[index], clock + offset)

        load = await measure(answers, done, start)
        pool.close()
        return load

    return uvloop.run(run())


async def measure(answers: list[Answer], done: asyncio.Event, start: Callable[[], object]) -> Load:
    """A run from `start` until it is `done`."""
    wall, cpu = time.perf_counter(), time.process_time()
    start()
    await done.wait()
    return Load(time.perf_counter() - wall, time.process_time() - cpu, answers)
