"""In the server: starts workers when there is work, again after a crash, and submits what is scheduled."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, SecretStr
from sqlalchemy import func, select

from octavo.errors import OctavoError
from octavo.jobs.liveness import live_workers, release_dead, this_host
from octavo.jobs.schedules import submit_due
from octavo.jobs.tables import JobRow
from octavo.settings import Settings

if TYPE_CHECKING:
    from octavo.jobs.service import Jobs

log = logging.getLogger(__name__)

LOOK_EVERY = 1.0
"""Seconds between looks at the queue; other processes submit too."""
MAX_LOG = 5 << 20
"""Bytes of worker.log; a longer one is started anew."""
_HEALTHY = 30.0
"""Seconds after which a worker's end is no failure to start."""


@dataclass
class _Child:
    process: subprocess.Popen[bytes]
    started: float


class Supervisor:
    """A thread that looks after the queue of one workspace.

    Attributes:
        problem: why workers do not stay up; empty when all is well.
    """

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs
        self._children: list[_Child] = []
        self._wake = threading.Event()
        self._stopping = False
        self._crashes = 0
        self._not_before = 0.0
        self._thread = threading.Thread(target=self._loop, name="jobs-supervisor", daemon=True)
        self.problem = ""

    def start(self) -> None:
        """Begin looking."""
        self._thread.start()

    def wake(self) -> None:
        """Look now."""
        self._wake.set()

    def stop(self, timeout: float = 10.0) -> None:
        """Tell workers to hand their jobs back, wait for them, kill what is left after `timeout` seconds."""
        self._stopping = True
        self._wake.set()
        self._thread.join(timeout)
        for child in self._children:
            child.process.terminate()
        deadline = time.monotonic() + timeout
        for child in self._children:
            try:
                child.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
        self._children.clear()

    def pids(self) -> list[int]:
        """Of the workers this supervisor started."""
        return [child.process.pid for child in self._children]

    def _loop(self) -> None:
        while not self._stopping:
            try:
                self.look()
            except OctavoError as error:
                log.warning("jobs: %s", error)
            except Exception:
                log.exception("jobs: the supervisor stumbled; it goes on")
            self._wake.wait(LOOK_EVERY)
            self._wake.clear()

    def look(self) -> None:
        """One round: count the dead, submit what is due, start what is wanted."""
        self._reap()
        release_dead(self._jobs.database)
        submit_due(self._jobs, datetime.now(UTC))
        if not self._stopping and time.monotonic() >= self._not_before:
            for _ in range(self._missing()):
                self._spawn()

    def _missing(self) -> int:
        """Workers to start: as many as there are jobs, up to `jobs.workers` on this machine."""
        unfinished = select(JobRow.state, func.count()).where(JobRow.state.in_(("queued", "running")))
        with self._jobs.database.session(read_only=True) as session:
            counts = {row[0]: row[1] for row in session.execute(unfinished.group_by(JobRow.state))}
            if not counts.get("queued"):
                return 0
            ours = {child.process.pid for child in self._children}
            here = ours | {worker.pid for worker in live_workers(session) if worker.host == this_host()}
        return max(0, min(self._jobs.settings.jobs.workers, sum(counts.values())) - len(here))

    def _reap(self) -> None:
        for child in list(self._children):
            code = child.process.poll()
            if code is None:
                if self._crashes and time.monotonic() - child.started > _HEALTHY:
                    self._crashes, self.problem = 0, ""
                continue
            self._children.remove(child)
            if code == 0:
                self._crashes, self.problem = 0, ""
                continue
            self._crashes += 1
            pause = 0.0 if self._crashes == 1 else min(60.0, 0.5 * 2**self._crashes)
            self._not_before = time.monotonic() + pause
            ending = f"signal {-code}" if code < 0 else f"exit code {code}"
            self.problem = f"a worker ended with {ending}; see {self._log_file()}"
            log.warning("jobs: %s", self.problem)

    def _spawn(self) -> None:
        settings = self._jobs.settings
        file = self._log_file()
        file.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "octavo.jobs.worker", "--workspace", str(settings.workspace)]
        command += ["--modules", ",".join(self._jobs.modules)]
        long = file.exists() and file.stat().st_size > MAX_LOG
        with file.open("wb" if long else "ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # ctrl-C in the server's terminal is the server's to pass on
                env=os.environ | dict(_environment(settings)),
            )
        self._children.append(_Child(process, time.monotonic()))

    def _log_file(self) -> Path:
        return self._jobs.settings.run_folder / "worker.log"


def _environment(settings: Settings) -> Iterator[tuple[str, str]]:
    """The settings that differ from their defaults, so that a worker sees the server's command-line flags too."""
    for section, group in settings:
        if not isinstance(group, BaseModel):
            continue
        for name, value in group:
            if value != type(group).model_fields[name].default:
                yield f"OCTAVO_{section}__{name}".upper(), _text(value)


def _text(value: Any) -> str:
    """As the settings are read from the environment: lists in JSON."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return json.dumps(value) if isinstance(value, list | tuple) else str(value)
