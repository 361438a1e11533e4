"""The models an operator wants kept in memory, remembered over restarts in a small file of the workspace."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Set
from pathlib import Path

from octavo.errors import OctavoError, Unavailable
from octavo.storage.atomic import write_atomic

PIN_FILE = "pins.json"

_PAUSE = 10.0  # seconds before a pinned model that was unavailable is tried again

log = logging.getLogger("octavo.serving")


class Pins:
    """The pinned models of one server.

    Args:
        file: where they are remembered.
        names: the set residency looks at; changed in place.
        with_steps: a model and, of an ensemble, all its steps.
        load: brings a model into memory.
    """

    def __init__(
        self,
        file: Path,
        names: set[str],
        with_steps: Callable[[str], Awaitable[list[str]]],
        load: Callable[[str], Awaitable[None]],
    ) -> None:
        self._file, self._names = file, names
        self._with_steps, self._load = with_steps, load
        self._one_at_a_time = asyncio.Lock()
        names |= read_pins(file)

    async def add(self, name: str) -> None:
        """Pin a model and load it; one that cannot be loaded is not pinned."""
        async with self._one_at_a_time:
            added = set(await self._with_steps(name)) - self._names
            self._names |= added
            try:
                await self._load(name)
            except BaseException:
                self._names -= added
                raise
            await self._remember()

    async def remove(self, name: str) -> None:
        """Let a model be evicted again; also one that has gone or is damaged."""
        async with self._one_at_a_time:
            try:
                self._names -= set(await self._with_steps(name))
            except OctavoError:
                if name not in self._names:
                    raise
                self._names.discard(name)
            await self._remember()

    async def load_all(self) -> None:
        """Load what is pinned; again after a while what could not be had just now."""
        left = sorted(self._names)
        while left:
            again: list[str] = []
            pause = _PAUSE
            for name in left:
                try:
                    await self._load(name)
                except Unavailable as error:
                    log.warning("the pinned model %s is not in memory yet: %s", name, error)
                    again.append(name)
                    pause = max(pause, error.retry_after)
                except OctavoError as error:
                    log.warning("the pinned model %s is not in memory: %s", name, error)
            left = again
            if left:
                await asyncio.sleep(pause)

    async def _remember(self) -> None:
        await asyncio.to_thread(write_pins, self._file, self._names)


def read_pins(file: Path) -> set[str]:
    """Names of pinned models; none, with a word in the log, when the file cannot be read."""
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return set(names)
        log.warning("%s does not hold a list of names; nothing is pinned", file)
    except FileNotFoundError:
        return set()  # nothing was ever pinned
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read, nothing is pinned: %s", file, error)
    return set()


def write_pins(file: Path, names: Set[str]) -> None:
    """Remember the names, whole or not at all."""
    write_atomic(file, json.dumps(sorted(names)).encode())
