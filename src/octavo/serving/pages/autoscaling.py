"""`/autoscaling`: replay a trace with a scaling policy: instances, demand and money over time."""

from __future__ import annotations

import asyncio
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from nicegui import events, ui

from octavo.access import Principal, allowed
from octavo.errors import Invalid, OctavoError
from octavo.serving.autoscaling.apart import Trace, simulate_apart
from octavo.serving.autoscaling.picture import draw
from octavo.serving.autoscaling.policy import ScalingPolicy
from octavo.serving.autoscaling.recorded import recorded_calls
from octavo.serving.autoscaling.simulator import Simulation
from octavo.serving.autoscaling.trace import COLUMNS
from octavo.serving.pages.console import Console, alert, command
from octavo.serving.pages.scaling_form import ScalingForm
from octavo.serving.pages.scaling_result import ScalingResult, periods_csv

_ABOUT = (
    "How many instances would this load have needed, and what would they have cost? "
    "A dry run replays a trace minute by minute with a target-tracking policy; nothing is started."
)
_PERIODS = {1: "Last 24 hours", 7: "Last 7 days", 28: "Last 4 weeks"}
_FILE, _USAGE = "A trace", "Recorded usage"

_one_at_a_time = asyncio.Semaphore(1)
"""Of all pages: a simulation takes a whole core while it runs."""


def register(console: Console) -> None:
    """Declare the page."""

    @ui.page("/autoscaling")
    async def autoscaling_page() -> None:
        with console.frame("Autoscaling") as principal:
            _Page(console, principal).draw()


class _Page:
    """One open page."""

    def __init__(self, console: Console, principal: Principal) -> None:
        self._console = console
        self._may_see_usage = allowed(principal, "admin", "models/*")
        self._file: tuple[str, bytes] | None = None
        self._done: tuple[Simulation, ScalingPolicy] | None = None

    def draw(self) -> None:
        ui.html(f'<p class="o-quiet o-lead">{_ABOUT}</p>', sanitize=False)
        with ui.element("div").classes("o-card o-wide o-stack"):
            self._draw_source()
            self._form = ScalingForm(self._console.settings.serving.machine_price)
            self._said = ui.html(sanitize=False).classes("o-wide")
            with ui.element("div").classes("o-row o-wide"):
                self._button = ui.button("Simulate", on_click=self._run).props("unelevated no-caps")
                self._working = ui.spinner(size="sm")
                self._working.set_visibility(False)
                ui.html(f'<span class="o-quiet o-small">or {_COMMAND}</span>', sanitize=False)
        self._result = ScalingResult()
        with ui.element("div").classes("o-row o-wide o-above") as self._downloads:
            ui.button("CSV", on_click=self._download_csv).props("outline no-caps")
            ui.button("PNG", on_click=self._download_png).props("outline no-caps")
        self._downloads.set_visibility(False)

    def _draw_source(self) -> None:
        """A file, or, for whoever may see everybody's usage, what this server recorded."""
        choices = [_FILE, _USAGE] if self._may_see_usage else [_FILE]
        self._source = ui.toggle(choices, value=_FILE).props("no-caps unelevated dense").classes("o-choice")
        self._source.set_visibility(len(choices) > 1)
        limit = self._console.settings.web.max_body
        with ui.element("div").classes("o-wide") as file:
            upload = ui.upload(
                label=f"CSV with {', '.join(COLUMNS)}",
                on_upload=self._take,
                on_rejected=lambda: self._said.set_content(alert(f"The file is larger than {limit / 2**20:,.0f} MiB.")),
                max_file_size=limit,
                auto_upload=True,
            )
            upload.props('accept=".csv" flat bordered').classes("o-wide o-upload")
            self._named = ui.label("No trace is chosen.").classes("o-quiet o-small")
        with ui.element("div").classes("o-wide") as usage:
            self._days = ui.select(_PERIODS, value=7, label="Period").style("max-width: 240px")
            ui.label("Requests per hour and model, spread evenly within each hour.").classes("o-quiet o-small")
        file.bind_visibility_from(self._source, "value", value=_FILE)
        usage.bind_visibility_from(self._source, "value", value=_USAGE)

    async def _take(self, event: events.UploadEventArguments) -> None:
        self._file = (event.file.name, await event.file.read())
        event.sender.reset()  # type: ignore[attr-defined]  # it is the upload
        self._named.set_text(f"{self._file[0]}, {len(self._file[1]) / 1024:,.0f} KiB")
        self._said.set_content("")

    async def _run(self) -> None:
        self._button.set_enabled(False)
        self._working.set_visibility(True)
        self._said.set_content("")
        problem: OctavoError | None = None
        try:
            async with _one_at_a_time:
                self._done = await (self._replay_file() if self._source.value == _FILE else self._replay_usage())
        except OctavoError as error:
            problem = error
        if self._button.is_deleted:  # the page was left meanwhile
            return
        self._button.set_enabled(True)
        self._working.set_visibility(False)
        if problem is None and self._done is not None:
            self._result.show(*self._done)
            self._downloads.set_visibility(True)
        elif problem is not None and not self._form.mark(problem):
            self._said.set_content(alert(problem))

    async def _replay_file(self) -> tuple[Simulation, ScalingPolicy]:
        if self._file is None:
            raise Invalid("no trace is chosen", "Simulate", f"Send a CSV with {', '.join(COLUMNS)}.")
        name, raw = self._file
        with tempfile.TemporaryDirectory(prefix="octavo-trace-") as folder:
            file = Path(folder, "trace.csv")
            await asyncio.to_thread(file.write_bytes, raw)
            return await self._replay((file, name), {})

    async def _replay_usage(self) -> tuple[Simulation, ScalingPolicy]:
        service = self._console.service
        since = datetime.now(UTC) - timedelta(days=self._days.value)
        hours = await service.usage_by_hour(since.replace(minute=0, second=0, microsecond=0))
        calls = await asyncio.to_thread(recorded_calls, hours)
        measured = {status.name: status.resident_bytes for status in await service.index() if status.resident_bytes}
        return await self._replay(calls, measured)

    async def _replay(self, trace: Trace, measured: dict[str, int]) -> tuple[Simulation, ScalingPolicy]:
        policy, kind, fixed = self._form.read(measured)
        return await simulate_apart(trace, policy, kind, fixed), policy

    async def _download_csv(self) -> None:
        if self._done is not None:
            lines = await asyncio.to_thread(periods_csv, self._done[0])
            ui.download.content(lines, "autoscaling.csv", "text/csv")

    async def _download_png(self) -> None:
        if self._done is None:
            return
        try:
            picture = await asyncio.to_thread(_picture, *self._done)
        except OctavoError as error:
            ui.notify(str(error), type="negative", multi_line=True)
            return
        ui.download.content(picture, "autoscaling.png", "image/png")


def _picture(simulation: Simulation, policy: ScalingPolicy) -> bytes:
    with tempfile.TemporaryDirectory(prefix="octavo-picture-") as folder:
        file = Path(folder, "autoscaling.png")
        draw(simulation, policy, file)
        return file.read_bytes()


_COMMAND = command("octavo autoscaling simulate TRACE.csv --plot autoscaling.png")
