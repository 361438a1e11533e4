"""What a Python model prints, line by line into the server's log: bounded in length, bounded in rate."""

from __future__ import annotations

import logging
import os
import select
import threading
import time

logger = logging.getLogger("octavo.serving.model")

MAX_LINE = 4000
"""Characters of a line that are kept."""
LINES_PER_SECOND = 200
"""Lines of one worker logged per second; more are counted and told."""

_CHUNK = 64 * 1024
_LAST_READS = 64
_LEVELS = {"I": logging.INFO, "W": logging.WARNING, "E": logging.ERROR, "V": logging.DEBUG}


class LineLog:
    """Cuts bytes into lines and logs them under the model's name. `pb_utils.Logger` marks lines with their level."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._rest = b""
        self._second = 0
        self._lines = 0

    def feed(self, data: bytes) -> None:
        """The next bytes."""
        *lines, rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._line(line)
        self._rest = rest[: 4 * MAX_LINE]  # of a line without end only its head is kept

    def end(self) -> None:
        """No more bytes: log what is left."""
        if self._rest:
            self._line(self._rest)
        self._rest = b""
        self._tell_dropped()

    def _line(self, raw: bytes) -> None:
        second = int(time.monotonic())
        if second != self._second:
            self._tell_dropped()
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines > LINES_PER_SECOND:
            return
        text = raw[: 4 * MAX_LINE].decode("utf-8", "replace").rstrip("\r")
        level = logging.INFO
        if text[:1] == "\x1e" and text[1:2] in _LEVELS:
            level, text = _LEVELS[text[1]], text[2:]
        # Control characters could forge log lines or drive a terminal.
        text = "".join(char if char.isprintable() or char == "\t" else "\N{REPLACEMENT CHARACTER}" for char in text)
        logger.log(level, "%s: %s", self._model, text[:MAX_LINE])

    def _tell_dropped(self) -> None:
        if self._lines > LINES_PER_SECOND:
            logger.warning("%s: %d lines dropped", self._model, self._lines - LINES_PER_SECOND)
            self._lines = LINES_PER_SECOND


def follow(model: str, pipe: int, death: int) -> threading.Thread:
    """Log a worker's output from `pipe` in a thread that ends when the worker (pidfd `death`) has ended."""
    thread = threading.Thread(target=_pump, args=(LineLog(model), pipe, death), name=f"log of {model}", daemon=True)
    thread.start()
    return thread


def _pump(log: LineLog, pipe: int, death: int) -> None:
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    poll.register(death, select.POLLIN)
    # What a dead worker's escaped children go on printing is read a while, not for ever.
    last_reads = _LAST_READS
    while last_reads:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if death in ready:
            last_reads -= 1
        if pipe not in ready:
            break
        data = os.read(pipe, _CHUNK)
        if not data:
            break
        log.feed(data)
    log.end()
