"""The card that trains a tenant: who, on which base, on which file; and how far running trainings are."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from html import escape

from nicegui import events, ui

from octavo.access import Principal, allowed
from octavo.errors import NotFound, OctavoError
from octavo.jobs import Job, Jobs
from octavo.serving.model_config import check_name
from octavo.serving.pages.console import Console, alert, command, tag
from octavo.serving.tenants.metadata import tenant_model
from octavo.serving.tenants.submission import TRAIN, read_upload, require_training, submit_training

_WATCH_SECONDS = 1.0
_COMMAND = f'<span class="o-quiet o-small">or {command("octavo tenants train NAME --examples FILE.csv")}</span>'
_SHOWN = 5
"""Trainings that are shown: those that run, and the last of this page."""


class TrainingCard:
    """A form and the trainings it began.

    Args:
        console: what the pages have.
        principal: who looks.
        jobs: of the server.
        trained: called when a training has ended.
    """

    def __init__(
        self, console: Console, principal: Principal, jobs: Jobs, trained: Callable[[], Awaitable[None]]
    ) -> None:
        self._console, self._principal, self._jobs, self._trained = console, principal, jobs, trained
        self._file: tuple[str, bytes] | None = None
        self._watched: list[str] = []
        self._ended: set[str] = set()

    async def draw(self) -> None:
        """Draw it, with the trainings that run already."""
        with ui.element("div").classes("o-card o-wide o-stack"):
            with ui.element("div").classes("o-pair"):
                with ui.element("div").classes("o-stack"):
                    self._name = ui.input("Tenant", placeholder="acme", validation=_fit)
                    self._base = ui.select([], label="Base", with_input=True)
                with ui.element("div").classes("o-stack"):
                    self._draw_upload()
            self._said = ui.html(sanitize=False).classes("o-wide")
            with ui.element("div").classes("o-row o-wide"):
                self._button = ui.button("Train", on_click=self._submit).props("unelevated no-caps")
                self._button.set_enabled(False)
                ui.html(_COMMAND, sanitize=False)
            self._progress = ui.html(sanitize=False).classes("o-wide")
        bases = await asyncio.to_thread(self._bases)
        self._base.set_options(bases, value="minilm" if "minilm" in bases else next(iter(bases), None))
        self._watched = [job.id for job in await asyncio.to_thread(self._running)]
        await self._watch()
        ui.timer(_WATCH_SECONDS, self._watch)

    def _draw_upload(self) -> None:
        limit = self._console.settings.web.max_body
        rows = self._console.settings.serving.max_examples
        self._upload = ui.upload(
            label="Examples: CSV with text, category",
            on_upload=self._take,
            on_rejected=lambda: self._said.set_content(alert(f"The file is larger than {limit / 2**20:,.0f} MiB.")),
            max_file_size=limit,
            max_files=1,
            auto_upload=True,
        )
        self._upload.props('accept=".csv,.gz" flat bordered').classes("o-wide o-upload")
        hint = f"Up to {rows:,} rows, also as .csv.gz. The category oos marks what is out of scope."
        ui.label(hint).classes("o-quiet o-small")

    async def _take(self, event: events.UploadEventArguments) -> None:
        """Read the file at once, so that what is wrong with it is told before anything else."""
        name, raw = event.file.name, await event.file.read()
        self._upload.reset()
        try:
            found = await asyncio.to_thread(read_upload, raw, name, self._console.settings)
        except OctavoError as error:
            self._file = None
            self._button.set_enabled(False)
            self._said.set_content(alert(error))
            return
        self._file = (name, raw)
        self._button.set_enabled(True)
        outside = " and some out of scope" if "oos" in found.categories else ""
        count = len({*found.categories} - {"oos"})
        kinds = "1 category" if count == 1 else f"{count:,} categories"
        text = f"{name}: {len(found.texts):,} examples of {kinds}{outside}"
        self._said.set_content(f'<p class="o-quiet">{escape(text)}</p>')

    async def _submit(self) -> None:
        if self._file is None or not self._name.validate():
            return
        tenant, base, (file, raw) = self._name.value.strip(), self._base.value or "", self._file
        self._button.set_enabled(False)
        repository, owner = self._console.service.repository, self._principal.name
        try:
            require_training(self._principal, tenant, base)
            done = await asyncio.to_thread(submit_training, repository, self._jobs, tenant, base, raw, file, owner)
        except OctavoError as error:
            self._said.set_content(alert(error))
            self._button.set_enabled(True)
            return
        self._file = None
        self._said.set_content("")
        self._watched.insert(0, done.job)
        await self._watch()

    async def _watch(self) -> None:
        """Show how far the trainings are."""
        if not self._watched:
            return
        found = await asyncio.to_thread(self._read)
        drawn = "".join(_draw_training(job) for job in found)
        if self._progress.content != drawn:
            self._progress.set_content(drawn)
        ended = {job.id for job in found if job.ended}
        if ended - self._ended:
            self._ended |= ended
            await self._trained()

    def _read(self) -> list[Job]:
        found = []
        for identity in self._watched[:_SHOWN]:
            try:
                found.append(self._jobs.get(identity))
            except NotFound:  # it was so long ago that it is forgotten
                continue
        return found

    def _running(self) -> list[Job]:
        """Trainings of tenants this person may see."""
        every = [job for state in ("running", "queued") for job in self._jobs.list(state)]
        return [job for job in every if job.kind == TRAIN and self._may_see(str(job.arguments.get("tenant", "")))]

    def _may_see(self, tenant: str) -> bool:
        return bool(tenant) and allowed(self._principal, "view", f"models/{tenant}-intent")

    def _bases(self) -> list[str]:
        """Models that give embeddings of texts, and that this person may ask."""
        repository, found = self._console.service.repository, []
        for name in repository.names():
            try:
                task = repository.config(name, repository.choose(name)).parameters.get("task", "")
            except OctavoError:
                continue
            if task == "text-embedding" and allowed(self._principal, "infer", f"models/{name}"):
                found.append(name)
        return found


def _fit(value: str | None) -> str | None:
    try:
        tenant_model(check_name((value or "").strip()))
    except OctavoError as error:
        return error.what
    return None


def _draw_training(job: Job) -> str:
    tenant = escape(str(job.arguments.get("tenant", "")))
    kind = {"succeeded": "o-good", "failed": "o-bad", "cancelled": "o-warn"}.get(job.state, "o-busy")
    note = job.error.what if job.error else job.message
    done = f"{100 * job.progress:.0f}"
    return (
        f'<div class="o-training"><strong>{tenant}</strong>{tag(job.state, kind)}'
        f'<div class="o-bar o-grow" role="progressbar" aria-valuenow="{done}" aria-label="Training of {tenant}">'
        f'<i class="o-part-1" style="width:{done}%"></i></div>'
        f'<span class="o-quiet o-small">{escape(note)}</span><a class="o-small" href="/jobs/{job.id}">log</a></div>'
    )
