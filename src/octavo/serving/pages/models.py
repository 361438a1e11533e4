"""The console's page of serving: what is in memory and what it costs, live; load, pin, switch version, try."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from html import escape
from typing import TYPE_CHECKING, Any

from nicegui import events, ui

from octavo.access import Principal, allowed, require
from octavo.errors import Invalid, OctavoError
from octavo.serving.inference import InferRequest
from octavo.serving.pages.console import AXIS, GRID_LINE, LEGEND, REFRESH_SECONDS, Console, alert, figures
from octavo.serving.question import read_tensors, text_tensors
from octavo.serving.statistics import ModelStatistics, percentile
from octavo.serving.tensors import Tensors, datatype_of

if TYPE_CHECKING:
    from octavo.serving.service import Serving
    from octavo.serving.snapshots import ModelStatus, ResidencySnapshot

_CHART_POINTS = 150
_SHOWN_VALUES = 8

_ACTIONS = """
<q-td :props="props" class="o-actions">
  <q-btn v-if="!props.row.resident" flat label="Load" @click="$parent.$emit('load', props.row)"/>
  <q-btn v-else flat label="Unload" @click="$parent.$emit('unload', props.row)"/>
  <q-btn flat :label="props.row.pinned ? 'Unpin' : 'Pin'" @click="$parent.$emit('pin', props.row)"/>
</q-td>
"""
_VERSION = """
<q-td :props="props">
  <q-select v-if="props.row.versions.length > 1" dense borderless options-dense
    :options="[...props.row.versions, 'newest']" :model-value="props.row.version"
    :aria-label="'Version of ' + props.row.name"
    @update:model-value="(to) => $parent.$emit('version', {name: props.row.name, version: to})"/>
  <span v-else>{{ props.row.version }}</span>
</q-td>
"""
_STATE = """
<q-td :props="props"><span class="o-tag" :class="props.row.tag" :title="props.row.reason">{{ props.row.state }}</span>
</q-td>
"""


def register(console: Console) -> None:
    """Declare the page."""

    @ui.page("/models")
    async def models_page() -> None:
        with console.frame("Models") as principal:
            require(principal, "view", "models/*")
            await _Page(console.service, principal).draw()


class _Page:
    """One open page."""

    def __init__(self, service: Serving, principal: Principal) -> None:
        self._service = service
        self._principal = principal

    async def draw(self) -> None:
        self._figures = ui.html(sanitize=False).classes("o-wide")
        ui.html("<h2>Latency</h2>", sanitize=False)
        with ui.element("div").classes("o-card o-wide"):
            self._chart = ui.echart(_chart_options()).style("height: 200px")
        ui.html("<h2>In the repository</h2>", sanitize=False)
        self._table = self._draw_table()
        ui.html("<h2>Try it</h2>", sanitize=False)
        self._draw_try()
        await self._refresh()
        ui.timer(REFRESH_SECONDS, self._refresh)

    def _draw_table(self) -> ui.table:
        right = {"align": "right"}
        left = {"align": "left"}
        columns: list[dict[str, Any]] = [
            {"name": "name", "label": "Model", "field": "name", "sortable": True} | left,
            {"name": "state", "label": "State", "field": "state", "sortable": True} | left,
            {"name": "version", "label": "Version", "field": "version"} | left,
            {"name": "memory", "label": "MiB", "field": "memory", "sortable": True} | right,
            {"name": "requests", "label": "Requests", "field": "requests", "sortable": True} | right,
            {"name": "colds", "label": "Cold", "field": "colds", "sortable": True} | right,
            {"name": "p50", "label": "p50 ms", "field": "p50", "sortable": True} | right,
            {"name": "p99", "label": "p99 ms", "field": "p99", "sortable": True} | right,
            {"name": "actions", "label": "", "field": "name"} | right,
        ]
        with ui.element("div").classes("o-card o-wide o-scroll"):
            search = ui.input("Search models").props('dense clearable aria-label="Search models"')
            table = ui.table(columns=columns, rows=[], row_key="name", pagination=20).props("flat dense")
            table.classes("o-wide o-acting").bind_filter_from(search, "value")
        table.add_slot("body-cell-actions", _ACTIONS)
        table.add_slot("body-cell-version", _VERSION)
        table.add_slot("body-cell-state", _STATE)
        table.on("load", self._handler(lambda row: self._service.load(row["name"]), "is in memory"))
        table.on("unload", self._handler(lambda row: self._service.unload(row["name"]), "has left memory"))
        table.on("pin", self._handler(self._pin, "its pin was changed"))
        table.on("version", self._handler(self._use_version, "answers with another version"))
        return table

    def _draw_try(self) -> None:
        with ui.element("div").classes("o-card o-wide o-stack"):
            self._chosen = ui.select([], label="Model").props("dense").style("max-width: 320px")
            self._asked = ui.textarea(
                "Texts, one per line, or JSON tensors", value="Where is my order?\nMy parcel has not arrived yet."
            ).props("autogrow")
            self._asked.classes("o-wide")
            ui.button("Ask", on_click=self._ask).props("unelevated no-caps")
            self._answer = ui.html(sanitize=False).classes("o-wide o-scroll")

    def _handler(
        self, act: Callable[[dict[str, Any]], Awaitable[None]], done: str
    ) -> Callable[[events.GenericEventArguments], Awaitable[None]]:
        """An event of a row: asked for permission, run, answered with a notification."""

        async def handle(event: events.GenericEventArguments) -> None:
            name = event.args["name"]
            try:
                require(self._principal, "edit", f"models/{name}")
                await act(event.args)
            except OctavoError as error:
                ui.notify(str(error), type="negative", multi_line=True)
            else:
                ui.notify(f"{name}: {done}", type="positive")
            await self._refresh()

        return handle

    async def _pin(self, row: dict[str, Any]) -> None:
        await self._service.pin(row["name"], not row["pinned"])

    async def _use_version(self, row: dict[str, Any]) -> None:
        await self._service.use_version(row["name"], row["version"])

    async def _ask(self) -> None:
        name = self._chosen.value
        try:
            if not name:
                raise Invalid("no model is chosen", "Try it", "Choose one above.")
            require(self._principal, "infer", f"models/{name}")
            inputs, texts = await self._question(name, self._asked.value or "")
            answer = await self._service.infer(InferRequest(name, inputs, caller=self._principal.name))
        except OctavoError as error:
            self._answer.set_content(alert(error))
            return
        self._answer.set_content(_draw_answer(answer.outputs, texts))

    async def _question(self, model: str, asked: str) -> tuple[Tensors, list[str]]:
        """A JSON object of tensors, or else lines of text; with the texts, if they are."""
        if asked.lstrip().startswith("{"):
            declared = {spec.name: spec.datatype for spec in await self._service.inputs(model)}
            return read_tensors(asked, "Try it", declared), []
        texts = [line for line in asked.splitlines() if line.strip()]
        if not texts:
            raise Invalid("there is nothing to ask", "Try it", "Write a line of text.")
        return text_tensors(texts), texts

    async def _refresh(self) -> None:
        snapshot = self._service.residency()
        statistics = self._service.statistics()
        rows = self._rows(await self._service.index(), statistics)
        p50, p99 = (percentile([one.latency for one in statistics], share) for share in (0.5, 0.99))
        self._figures.set_content(_draw_figures(snapshot, p50, p99))
        if self._table.rows != rows:
            self._table.rows = rows
        names = [row["name"] for row in rows]
        if self._chosen.options != names:
            self._chosen.set_options(names, value=self._chosen.value or next(iter(names), None))
        self._extend_chart(p50, p99)

    def _rows(self, statuses: list[ModelStatus], statistics: list[ModelStatistics]) -> list[dict[str, Any]]:
        counts = {(one.name, one.version): one for one in statistics}
        by_name: dict[str, dict[str, Any]] = {}
        for status in statuses:
            if not allowed(self._principal, "view", f"models/{status.name}"):
                continue
            row = by_name.setdefault(status.name, {"versions": []})
            row["versions"].append(status.version)
            if not (status.default or not row.get("name")):
                continue
            one = counts.get((status.name, status.version))
            row |= {
                "name": status.name,
                "version": status.version,
                "state": _state(status.state, status.resident, status.pinned),
                "tag": {"UNAVAILABLE": "o-bad"}.get(status.state, "o-good" if status.resident else ""),
                "reason": status.reason,
                "resident": status.resident,
                "pinned": status.pinned,
                "memory": round(status.resident_bytes / 2**20, 1) if status.resident else None,
                "requests": one.success.count + one.fail.count if one else 0,
                "colds": one.colds.count if one else 0,
                "p50": _milliseconds(one.latency.percentile(0.5)) if one else None,
                "p99": _milliseconds(one.latency.percentile(0.99)) if one else None,
            }
        return sorted(by_name.values(), key=lambda row: (not row.get("resident"), row.get("name", "")))

    def _extend_chart(self, p50: float, p99: float) -> None:
        for series, value in zip(self._chart.options["series"], (p50, p99), strict=True):
            series["data"].append(_milliseconds(value))
            del series["data"][:-_CHART_POINTS]
        points = len(self._chart.options["series"][0]["data"])
        ago = [f"-{(points - 1 - at) * REFRESH_SECONDS:.0f} s" for at in range(points - 1)]
        self._chart.options["xAxis"]["data"] = [*ago, "now"]
        self._chart.update()


def _state(state: str, resident: bool, pinned: bool) -> str:
    if pinned and resident:
        return "pinned"
    return "in memory" if resident and state == "READY" else {"READY": "on disk"}.get(state, state.lower())


def _milliseconds(seconds: float) -> float | None:
    return round(seconds * 1e3, 1) if seconds else None


def _draw_figures(snapshot: ResidencySnapshot, p50: float, p99: float) -> str:
    counters = snapshot.counters
    asked = counters.hits + counters.colds
    cards = [
        (f"{counters.hits / asked:.1%}" if asked else "-", "found in memory"),
        (f"{counters.colds:,}", "cold starts"),
        (f"{counters.evictions:,}", "evictions"),
        (f"{snapshot.pending:,}", "requests in hand"),
        (f"{p50 * 1e3:.0f} / {p99 * 1e3:.0f}" if p50 else "-", "p50 / p99 ms, last minute"),
    ]
    return f'<div class="o-stack">{_draw_budget(snapshot)}{figures(cards)}</div>'


def _draw_budget(snapshot: ResidencySnapshot) -> str:
    """The budget as one bar: weights shared by several models, each model's own, and the rest that is held."""
    budget = max(1, snapshot.budget_bytes)
    holders = Counter(model.share_key for model in snapshot.models)
    shared = sum(size for key, size in snapshot.shared.items() if holders[key] != 1)
    alone = [
        (model.name, model.bytes + (snapshot.shared.get(model.share_key, 0) if holders[model.share_key] == 1 else 0))
        for model in snapshot.models
    ]
    own = sorted(alone, key=lambda item: -item[1])
    rest = max(0, snapshot.charged_bytes - shared - sum(size for _, size in alone))
    parts = [("weights shared by copies", shared, "o-part-1")]
    parts += [(name, size, "o-part-2" if at % 2 else "o-part-3") for at, (name, size) in enumerate(own)]
    parts.append(("running batches and other", rest, "o-part-4"))
    segments = "".join(
        f'<i class="{kind}" style="width:{size / budget:.3%}" title="{escape(name)}: {size / 2**20:.1f} MiB"></i>'
        for name, size, kind in parts
        if size > 0
    )
    legend = (
        '<div class="o-legend"><span><i class="o-part-1"></i>weights shared by copies</span>'
        '<span><i class="o-part-3"></i><i class="o-part-2"></i>each model alone</span>'
        '<span><i class="o-part-4"></i>running batches</span></div>'
    )
    held, whole = snapshot.charged_bytes / 2**20, budget / 2**20
    return (
        f'<div class="o-card"><div class="o-row"><strong>{held:,.0f} MiB</strong>'
        f'<span class="o-quiet">of {whole:,.0f} MiB, measured; models in memory: {len(snapshot.models)}'
        f"{f'; {shared / 2**20:,.0f} MiB of weights shared' if shared else ''}</span></div>"
        f'<div class="o-bar" role="img" aria-label="{held:,.0f} of {whole:,.0f} MiB held">{segments}</div>'
        f"{legend}</div>"
    )


def _chart_options() -> dict[str, Any]:
    def line(name: str, colour: str) -> dict[str, Any]:
        return {"name": name, "type": "line", "showSymbol": False, "data": [], "color": colour}

    return {
        "grid": {"left": 48, "right": 16, "top": 32, "bottom": 24},
        "legend": LEGEND,
        "tooltip": {"trigger": "axis"},
        "animation": False,
        "xAxis": {"type": "category", "data": [], "axisLabel": AXIS, "axisTick": {"show": False}, "boundaryGap": False},
        "yAxis": {
            "type": "value",
            "name": "ms",
            "axisLabel": AXIS,
            "nameTextStyle": AXIS,
            "splitLine": GRID_LINE,
        },
        "series": [line("p50", "#5b7fe0"), line("p99", "#c87f32")],
    }


def _draw_answer(outputs: Tensors, texts: list[str]) -> str:
    parts = []
    for name, array in outputs.items():
        values = ", ".join(
            f"{value:.4f}" if isinstance(value, float) else escape(str(value))
            for value in array.ravel()[:_SHOWN_VALUES].tolist()
        )
        more = ", ..." if array.size > _SHOWN_VALUES else ""
        parts.append(f"<p><strong>{escape(name)}</strong> {datatype_of(array)} {list(array.shape)}</p>")
        parts.append(f'<p class="o-mono o-quiet">{values}{more}</p>')
    vectors: Any = outputs.get("embedding")
    if vectors is not None and len(texts) > 1:
        parts.append(_draw_likeness(vectors @ vectors.T, texts))
    return "".join(parts)


def _draw_likeness(likeness: Any, texts: list[str]) -> str:
    """A table of cosines, shaded."""
    rows = "".join(
        f"<tr><th>{escape(text[:60])}</th>"
        + "".join(f'<td style="background:rgb(50 87 200 / {max(0.0, v) * 0.6:.2f})">{v:.2f}</td>' for v in row)
        + "</tr>"
        for text, row in zip(texts, likeness.tolist(), strict=True)
    )
    return f'<p class="o-quiet">How alike the texts are (cosine)</p><table class="o-table o-matrix">{rows}</table>'
