"""`/tenants`: each customer's models on the bases they share; train on a CSV, try a text."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from nicegui import ui

from octavo.access import Principal, allowed, require
from octavo.errors import Invalid, OctavoError
from octavo.serving.inference import InferRequest
from octavo.serving.pages.console import Console, alert, empty, may_change_some, percent
from octavo.serving.pages.tenant_training import TrainingCard
from octavo.serving.question import text_tensors
from octavo.serving.tenants.backend import INTENT
from octavo.serving.tenants.examples import OUT_OF_SCOPE
from octavo.serving.tenants.listing import TenantSummary, categories, seen_by, summarise
from octavo.serving.tenants.metadata import tenant_model

if TYPE_CHECKING:
    from octavo.serving.tensors import Tensors

_SHOW_SECONDS = 5.0
_READ_SECONDS = 30.0
"""Between looks at the repository, which take half a second of a thread's time where there are a thousand tenants."""
_ALTERNATIVES = 5
_ABOUT = (
    "A tenant is a customer with models of its own: an intent classifier and an embedding adapter, "
    "a few hundred kilobytes each, behind a base that all tenants share."
)
_MEMORY = """
<q-td :props="props"><span class="o-tag" :class="props.row.resident ? 'o-good' : ''">
{{ props.row.resident ? 'in memory' : 'on disk' }}</span></q-td>
"""


def register(console: Console) -> None:
    """Declare the page."""

    @ui.page("/tenants")
    async def tenants_page() -> None:
        with console.frame("Tenants") as principal:
            await _Page(console, principal).draw()


class _Page:
    """One open page."""

    def __init__(self, console: Console, principal: Principal) -> None:
        self._console, self._principal = console, principal
        self._found: list[TenantSummary] = []

    async def draw(self) -> None:
        ui.html(f'<p class="o-quiet o-lead">{_ABOUT}</p>', sanitize=False)
        self._problem = ui.html(sanitize=False).classes("o-wide")
        self._nothing = ui.html(sanitize=False).classes("o-wide")
        with ui.element("div").classes("o-card o-wide o-scroll") as self._listed:
            search = ui.input("Search tenants").props("dense clearable").classes("o-search")
            self._table = ui.table(columns=_COLUMNS, rows=[], row_key="tenant", pagination=20).props("flat dense")
            self._table.classes("o-wide").bind_filter_from(search, "value").add_slot("body-cell-resident", _MEMORY)
        if may_change_some(self._principal) and self._console.jobs is not None:
            ui.html("<h2>Train</h2>", sanitize=False)
            await TrainingCard(self._console, self._principal, self._console.jobs, self._refresh).draw()
        with ui.element("div").classes("o-wide") as self._tried:
            ui.html("<h2>Try it</h2>", sanitize=False)
            self._draw_try()
        await self._refresh()
        ui.timer(_READ_SECONDS, self._refresh)
        ui.timer(_SHOW_SECONDS, self._show)

    def _draw_try(self) -> None:
        with ui.element("div").classes("o-card o-wide o-stack"):
            with ui.element("div").classes("o-try"):
                self._chosen = ui.select([], label="Tenant", with_input=True)
                self._text = ui.input("Text", value="Where is my card?").on("keydown.enter", self._ask)
                ui.button("Ask", on_click=self._ask).props("unelevated no-caps")
            self._answer = ui.html(sanitize=False).classes("o-wide")

    async def _refresh(self) -> None:
        service = self._console.service
        try:
            every = await asyncio.to_thread(summarise, service.repository, service.documents)
        except OctavoError as error:
            self._problem.set_content(alert(error))
            return
        self._problem.set_content("")
        self._found = seen_by(self._principal, every)
        names = [one.tenant for one in self._found if self._may_ask(one)]
        if self._chosen.options != names:
            chosen = self._chosen.value if self._chosen.value in names else next(iter(names), None)
            self._chosen.set_options(names, value=chosen)
        self._show()

    def _show(self) -> None:
        """Bring the table up to date: what is in memory changes all the time."""
        resident = {model.name for model in self._console.service.residency().models}
        rows = [_row(one, resident) for one in self._found]
        if self._table.rows != rows:
            self._table.rows = rows
        for element in (self._listed, self._tried):
            element.set_visibility(bool(rows))
        self._nothing.set_content("" if rows else _NOTHING)

    def _may_ask(self, one: TenantSummary) -> bool:
        asked = [model for model in one.models if model.kind == INTENT]
        return any(allowed(self._principal, "infer", f"models/{model.model}") for model in asked)

    async def _ask(self) -> None:
        try:
            drawn = await self._classify(self._chosen.value or "", (self._text.value or "").strip())
        except OctavoError as error:
            drawn = alert(error)
        self._answer.set_content(drawn)

    async def _classify(self, tenant: str, text: str) -> str:
        if not tenant or not text:
            raise Invalid("there is nothing to ask", "Try it", "Choose a tenant and write a text.")
        model, service = tenant_model(tenant), self._console.service
        require(self._principal, "infer", f"models/{model}")
        version = await asyncio.to_thread(service.repository.choose, model)
        names = await asyncio.to_thread(categories, service.repository, model, version)
        request = InferRequest(model, text_tensors([text]), version=version, caller=self._principal.name)
        return _draw_answer((await service.infer(request)).outputs, names)


_NOTHING = empty(
    "No tenant yet. Train one on a CSV with the columns text and category:",
    "octavo tenants train acme --base minilm --examples acme.csv",
)


def _column(name: str, label: str, align: str = "right") -> dict[str, Any]:
    return {"name": name, "label": label, "field": name, "sortable": True, "align": align}


_COLUMNS = [
    _column("tenant", "Tenant", "left"),
    _column("resident", "State", "left"),
    _column("base", "Base", "left"),
    _column("examples", "Examples"),
    _column("categories", "Categories"),
    _column("accuracy", "Accuracy %"),
    _column("evaluated", "Last evaluation (UTC)"),
    _column("size", "KiB"),
    _column("trained", "Trained (UTC)"),
]


def _row(one: TenantSummary, resident: set[str]) -> dict[str, Any]:
    newest, last = one.newest, one.evaluation
    accuracy = last.found.accuracy if last else None
    return {
        "tenant": one.tenant,
        "base": newest.base,
        "examples": newest.examples or None,
        "categories": newest.categories or None,
        "trained": f"{datetime.fromtimestamp(newest.trained, UTC):%Y-%m-%d %H:%M}" if newest.trained else "",
        "accuracy": round(100 * accuracy, 1) if accuracy is not None else None,
        "evaluated": f"{last.found.in_scope:,} texts, {last.at:%Y-%m-%d %H:%M}" if last else "",
        "size": round(one.bytes / 1024),
        "resident": any(model.model in resident for model in one.models),
    }


def _draw_answer(outputs: Tensors, names: tuple[str, ...]) -> str:
    """The label with its confidence, and the categories that came nearest."""
    label = outputs["label"].ravel()[0].decode()
    confidence = float(outputs["confidence"].ravel()[0])
    chances = outputs["probabilities"].ravel()
    nearest = np.argsort(chances, kind="stable")[::-1][:_ALTERNATIVES]
    said = "out of scope" if label == OUT_OF_SCOPE else label
    rows = "".join(_draw_chance(names[at], float(chances[at])) for at in nearest)
    return (
        f'<div class="o-said" role="status"><strong>{escape(said)}</strong>'
        f'<span class="o-quiet">best category at {percent(confidence)}</span></div>'
        f'<table class="o-table o-chances">{rows}</table>'
    )


def _draw_chance(name: str, chance: float) -> str:
    return (
        f'<tr><th>{escape(name)}</th><td><div class="o-bar"><i class="o-part-1" style="width:{chance:.2%}"></i></div>'
        f'</td><td class="o-number">{percent(chance)}</td></tr>'
    )
