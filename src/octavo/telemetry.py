"""What the server tells of itself: log lines, request ids, Prometheus metrics.

A log line is one JSON object, or plain text on a terminal. Metrics live in prometheus-client's own registry, which also
counts the process's memory and processor time; any floor may add its own to it.
"""

from __future__ import annotations

import json
import logging
import random
import re
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request being answered; empty outside of one. Every log line carries it."""

_GIVEN_ID = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LIBRARIES = ("uvicorn", "nicegui", "sqlalchemy", "alembic", "dbos", "httpx", "asyncio", "matplotlib")


def choose_request_id(given: bytes | None) -> str:
    """The caller's own id when it is short and plain, else a new one of 16 hexadecimal digits."""
    if given is not None and _GIVEN_ID.fullmatch(given):
        return given.decode("ascii")
    return f"{random.getrandbits(64):016x}"


def start_logging(level: str) -> None:
    """Log to standard error from now on: octavo at `level` (debug, info, warning, error), libraries from warning up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain() if sys.stderr.isatty() else _JsonLine())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("octavo").setLevel(level.upper())
    for name in _LIBRARIES:
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
        library.setLevel(logging.WARNING)


class _JsonLine(logging.Formatter):
    """`{"time", "level", "logger", "message", "request_id"?, "error"?}` on one line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, str] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id.get():
            line["request_id"] = request_id.get()
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class _Plain(logging.Formatter):
    """`12:30:01 warning octavo.serving: message`, for eyes."""

    def format(self, record: logging.LogRecord) -> str:
        clock = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        mark = f" [{request_id.get()}]" if request_id.get() else ""
        text = f"{clock} {record.levelname.lower()} {record.name}{mark}: {record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


@cache
def _requests() -> Counter:
    from prometheus_client import Counter

    return Counter("octavo_http_requests", "Requests answered, by route.", ["method", "route", "status"])


@cache
def _seconds() -> Histogram:
    from prometheus_client import Histogram

    return Histogram(
        "octavo_http_seconds", "Seconds from request to the end of its answer.", ["route"], buckets=_SECONDS
    )


@cache
def _children(method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    """The two series of a route: looking them up by label costs more than counting."""
    return _requests().labels(method, route, str(status)), _seconds().labels(route)


def count_request(method: str, route: str, status: int, seconds: float) -> None:
    """Count one answered request. `route` is the template, such as `/v2/models/{name}/infer`, never the raw path."""
    requests, histogram = _children(method, route, status)
    requests.inc()
    histogram.observe(seconds)


def exposition() -> bytes:
    """All metrics in Prometheus' text format."""
    from prometheus_client import REGISTRY, generate_latest

    return generate_latest(REGISTRY)
