"""The console's pages of jobs: the list with its schedules at `/jobs`, one job with its log at `/jobs/<id>`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from html import escape
from typing import Any

from nicegui import ui

from octavo.errors import OctavoError
from octavo.jobs.markup import STYLE, draw_job, draw_list, draw_log, draw_schedule, draw_states
from octavo.jobs.permission import Require
from octavo.jobs.records import STATES, Job, LogLine, Schedule
from octavo.jobs.service import Jobs

Frame = Callable[[str], AbstractContextManager[Any]]
"""`frame(title)` draws the console around a page, and yields who is looking."""

_REFRESH_SECONDS = 1.0
_PAGE = 50
_LINES = 1000
"""Newest lines of a log that are shown; all are in the JSON."""


def register(jobs: Jobs, frame: Frame, require: Require | None = None) -> None:
    """Declare the pages; without `require` they only show."""

    @ui.page("/jobs")
    async def jobs_page(state: str = "", page: int = 1) -> None:
        with frame("Jobs") as principal:
            if require is not None:
                require(principal, "view", "jobs/*")
            await _ListPage(jobs, principal, require, state if state in STATES else "", max(1, page)).draw()

    @ui.page("/jobs/{identity}")
    async def job_page(identity: str) -> None:
        with frame("Job") as principal:
            if require is not None:
                require(principal, "view", "jobs/*")
            job = await asyncio.to_thread(jobs.get, identity)
            await _JobPage(jobs, principal, require, job).draw()


class _ListPage:
    """One open list."""

    def __init__(self, jobs: Jobs, principal: Any, require: Require | None, state: str, page: int) -> None:
        self._jobs, self._principal, self._require = jobs, principal, require
        self._state, self._page = state, page
        self._schedules: list[Schedule] = []

    async def draw(self) -> None:
        ui.add_css(STYLE)
        self._problem = ui.html(sanitize=False).classes("o-wide")
        self._states = ui.html(sanitize=False).classes("o-wide")
        self._list = ui.html(sanitize=False).classes("o-wide")
        ui.html("<h2>Schedules</h2>", sanitize=False)
        self._box = ui.element("div").classes("o-card o-wide")
        await self._refresh(first=True)
        ui.timer(_REFRESH_SECONDS, self._refresh)

    async def _refresh(self, first: bool = False) -> None:
        try:
            found, counts, schedules = await asyncio.to_thread(self._read)
        except OctavoError as error:
            self._problem.set_content(_alert(str(error)))
            return
        supervisor = self._jobs.supervisor
        self._problem.set_content(_alert(supervisor.problem) if supervisor and supervisor.problem else "")
        self._states.set_content(draw_states(counts, self._state))
        more = len(found) > _PAGE
        self._list.set_content(draw_list(found[:_PAGE], self._jobs.kinds, self._state, self._page, more))
        if first or schedules != self._schedules:
            self._schedules = schedules
            self._draw_schedules()

    def _read(self) -> tuple[list[Job], dict[str, int], list[Schedule]]:
        found = self._jobs.list(self._state or None, _PAGE + 1, (self._page - 1) * _PAGE)
        return found, self._jobs.counts(), self._jobs.schedules()

    def _draw_schedules(self) -> None:
        self._box.clear()
        with self._box:
            if not self._schedules:
                ui.html(
                    "<p class='o-quiet'>None. Make one with <code>octavo jobs schedule NAME '0 3 * * *' KIND</code>"
                    "</p>",
                    sanitize=False,
                )
            for schedule in self._schedules:
                with ui.element("div").classes("o-row o-wide oj-schedule"):
                    ui.html(draw_schedule(schedule), sanitize=False).classes("o-grow")
                    if self._require is not None:
                        remove = ui.button("Remove", on_click=self._remover(schedule.name))
                        remove.props(f'flat dense no-caps aria-label="Remove {schedule.name}"')

    def _remover(self, name: str) -> Callable[[], Any]:
        async def remove() -> None:
            try:
                if self._require is not None:
                    self._require(self._principal, "admin", f"jobs/schedules/{name}")
                    await asyncio.to_thread(self._jobs.unschedule, name)
            except OctavoError as error:
                ui.notify(str(error), type="negative", multi_line=True)
            await self._refresh()

        return remove


class _JobPage:
    """One open job."""

    def __init__(self, jobs: Jobs, principal: Any, require: Require | None, job: Job) -> None:
        self._jobs, self._principal, self._require, self._job = jobs, principal, require, job
        self._lines: deque[LogLine] = deque(maxlen=_LINES)

    async def draw(self) -> None:
        ui.add_css(STYLE)
        self._facts = ui.html(sanitize=False).classes("o-wide")
        with ui.element("div").classes("o-row o-wide oj-actions"):
            if self._require is not None:
                self._cancel = ui.button("Cancel", on_click=self._act("cancel")).props("outline no-caps")
                self._retry = ui.button("Retry", on_click=self._act("retry")).props("unelevated no-caps")
            ui.link("All jobs", "/jobs").classes("o-small")
            ui.link("As JSON", f"/api/jobs/{self._job.id}").classes("o-small")
        ui.html("<h2>Log</h2>", sanitize=False)
        self._log = ui.html(sanitize=False).classes("o-wide")
        self._log.set_content(draw_log([]))
        await self._refresh()
        ui.timer(_REFRESH_SECONDS, self._refresh)

    async def _refresh(self) -> None:
        last = self._lines[-1].number if self._lines else 0
        try:
            self._job = await asyncio.to_thread(self._jobs.get, self._job.id)
            new = await asyncio.to_thread(self._jobs.log, self._job.id, last)
        except OctavoError as error:
            ui.notify(str(error), type="negative", multi_line=True)
            return
        self._facts.set_content(draw_job(self._job, self._jobs.kinds))
        if new:
            self._lines.extend(new)
            self._log.set_content(draw_log(list(self._lines)))
        if self._require is not None:
            self._cancel.set_visibility(not self._job.ended and not self._job.cancelling)
            self._retry.set_visibility(self._job.state in ("failed", "cancelled"))

    def _act(self, name: str) -> Callable[[], Any]:
        async def act() -> None:
            try:
                if self._require is not None:
                    self._require(self._principal, "edit", f"jobs/{self._job.kind}")
                    await asyncio.to_thread(getattr(self._jobs, name), self._job.id)
            except OctavoError as error:
                ui.notify(str(error), type="negative", multi_line=True)
            await self._refresh()

        return act


def _alert(text: str) -> str:
    return f"<p class='o-alert'>{escape(text)}</p>"
