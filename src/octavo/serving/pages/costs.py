"""`/costs`: what tenants and models used, what of the machine's bill that is, and what sharing the machine saved."""

from __future__ import annotations

from html import escape
from typing import Any
from urllib.parse import urlencode

from nicegui import ui

from octavo.access import Principal, allowed
from octavo.errors import OctavoError
from octavo.serving.costs.report import HOUSE_NAME, CostLine, CostReport
from octavo.serving.pages.console import AXIS, GRID_LINE, LEGEND, Console, alert, empty, figures

_PERIODS = {"24h": "Last 24 hours", "7d": "Last 7 days", "4w": "Last 4 weeks", "13w": "Last 13 weeks"}
_BY = {"": "Tenant and model", "tenant": "Tenant", "model": "Model"}
_BARS = 8
"""Lines that the chart shows: the dearest."""

_ABOUT = (
    "A line pays for its share of the memory and of the cores over the time the machine was up. "
    "Alone is what one instance for each model would have cost for the same time."
)


def register(console: Console) -> None:
    """Declare the page."""

    @ui.page("/costs")
    async def costs_page() -> None:
        with console.frame("Costs") as principal:
            await _Page(console, principal).draw()


class _Page:
    """One open page."""

    def __init__(self, console: Console, principal: Principal) -> None:
        self._console = console
        everything = allowed(principal, "admin", "models/*")
        self._tenant = None if everything else principal.name

    async def draw(self) -> None:
        about = _ABOUT if self._tenant is None else f"{_ABOUT} You see your own part."
        ui.html(f'<p class="o-quiet o-lead">{about}</p>', sanitize=False)
        with ui.element("div").classes("o-card o-wide o-asked"):
            price = self._console.settings.serving.machine_price
            self._since = ui.select(_PERIODS, value="7d", label="Period", on_change=self._refresh)
            self._by = ui.select(_BY, value="", label="A line for each", on_change=self._refresh)
            self._price = self._amount("Machine per hour", f"{price:g}")
            self._instance = self._amount("Instance per hour", "as the machine")
            self._csv = ui.link("CSV", "").props('download="costs.csv"').classes("o-button o-button-quiet")
        self._problem = ui.html(sanitize=False).classes("o-wide")
        self._figures = ui.html(sanitize=False).classes("o-wide o-above")
        with ui.element("div").classes("o-card o-wide o-above") as self._charted:
            self._chart = ui.echart(_chart_options())
        with ui.element("div").classes("o-card o-wide o-scroll o-above") as self._listed:
            self._table = ui.table(columns=_columns(""), rows=[], row_key="id", pagination=20).props("flat dense")
            self._table.classes("o-wide")
        self._nothing = ui.html(sanitize=False).classes("o-wide o-above")
        await self._refresh()

    def _amount(self, label: str, otherwise: str) -> ui.input:
        """A price; the one of the settings where the field is empty."""
        field = ui.input(label, placeholder=otherwise).props("stack-label debounce=400 inputmode=decimal")
        return field.on_value_change(self._refresh)

    async def _refresh(self) -> None:
        given = {
            "since": self._since.value,
            "by": self._by.value,
            "price": (self._price.value or "").strip(),
            "instance_price": (self._instance.value or "").strip(),
        }
        try:
            report = await self._console.service.costs(given, self._tenant)
        except OctavoError as error:
            self._problem.set_content(alert(error))
            return
        self._problem.set_content("")
        asked = urlencode({name: value for name, value in given.items() if value} | {"format": "csv"})
        self._csv.props["href"] = f"/api/serving/costs?{asked}"
        self._csv.update()
        self._show(report, given["by"])

    def _show(self, report: CostReport, by: str) -> None:
        used = bool(report.lines)
        for element in (self._charted, self._listed, self._csv):
            element.set_visibility(used)
        self._charted.set_visibility(used and bool(report.bill or report.alone))
        self._nothing.set_content("" if used else _draw_nothing(report))
        self._figures.set_content(_draw_figures(report, self._tenant is None) if used else "")
        self._table.columns = _columns(by)
        self._table.rows = [_row(at, line) for at, line in enumerate(report.lines)]
        dearest = report.lines[:_BARS]
        self._chart.options.update(_bars(dearest, by))
        self._chart.style(f"height: {70 + 34 * len(dearest)}px")
        self._chart.update()


def _columns(by: str) -> list[dict[str, Any]]:
    names: dict[str, list[dict[str, Any]]] = {
        name: [{"name": name, "label": name.capitalize(), "field": name, "sortable": True, "align": "left"}]
        for name in ("tenant", "model")
    }
    first = names[by] if by else [*names["tenant"], *names["model"]]
    numbers = {
        "money": "Money",
        "alone_money": "Alone",
        "saving": "Saved",
        "requests": "Requests",
        "failures": "Failures",
        "cold_starts": "Cold",
        "cpu_seconds": "CPU s",
        "memory_seconds": "Memory GiB·s",
    }
    return first + [
        {"name": name, "label": label, "field": name, "sortable": True, "align": "right", ":format": _FORMAT[name]}
        for name, label in numbers.items()
    ]


_WHOLE = "value => value.toLocaleString('en')"
_SECONDS = """value => value > 0 && value < 0.01 ? "<0.01"
  : value.toLocaleString("en", {maximumFractionDigits: value < 10 ? 2 : 0})"""
_MONEY = """value => value !== 0 && Math.abs(value) < 0.0001 ? (value < 0 ? ">-0.0001" : "<0.0001")
  : value.toLocaleString("en", Math.abs(value) < 1 ? {maximumFractionDigits: 4}
  : {minimumFractionDigits: 2, maximumFractionDigits: 2})"""
_FORMAT = {
    **dict.fromkeys(("requests", "failures", "cold_starts"), _WHOLE),
    **dict.fromkeys(("cpu_seconds", "memory_seconds"), _SECONDS),
    **dict.fromkeys(("money", "alone_money", "saving"), _MONEY),
}


def _row(at: int, line: CostLine) -> dict[str, Any]:
    return {
        "id": at,
        "tenant": line.tenant or HOUSE_NAME,
        "model": line.model,
        "requests": line.requests,
        "failures": line.failures,
        "cold_starts": line.cold_starts,
        "cpu_seconds": line.cpu_seconds,
        "memory_seconds": line.memory_gib_hours * 3600,
        "money": line.money,
        "alone_money": line.alone_money,
        "saving": line.saving,
    }


def _draw_figures(report: CostReport, everything: bool) -> str:
    cards = [
        (_money(report.bill), f"the bill of {_span(report.hours)}" if everything else "your part of the bill"),
        (_money(report.alone), f"an instance for each of {report.models} models"),
        (f"{report.saving_percent:.1f} %" if report.alone else "–", f"saved, {_money(report.saving)}"),
    ]
    if everything:
        idle = report.idle / report.bill if report.bill else 0.0
        cards.append((f"{idle:.1%}".replace("%", " %") if report.bill else "–", "of the machine idle"))
    free = "" if report.price else _UNPRICED
    return figures(cards) + free


_UNPRICED = (
    '<p class="o-quiet o-small o-above">No price is known, so all money is 0: fill in what the machine costs per hour, '
    "or set <code>serving.machine_price</code>.</p>"
)


def _draw_nothing(report: CostReport) -> str:
    since = escape(report.since[:16].replace("T", " "))
    return empty(
        f"Nothing was used since {since} UTC. Ask a model, or choose a longer period; the same on the command line:",
        "octavo costs --since 7d --by tenant",
    )


def _chart_options() -> dict[str, Any]:
    return {
        "grid": {"left": 8, "right": 24, "top": 36, "bottom": 8, "containLabel": True},
        "legend": LEGEND,
        "tooltip": {"trigger": "axis", "axisPointer": {"type": "shadow"}},
        "animation": False,
        "xAxis": {"type": "value", "axisLabel": AXIS | {"hideOverlap": True}, "splitLine": GRID_LINE},
        "yAxis": {"type": "category", "inverse": True, "data": [], "axisTick": {"show": False}},
        "series": [],
    }


def _bars(lines: tuple[CostLine, ...], by: str) -> dict[str, Any]:
    names = [_short(" · ".join(_names(line, by))) for line in lines]
    money = [round(line.money, 6) for line in lines]
    alone = [round(line.alone_money, 6) for line in lines]
    return {
        "yAxis": {
            "type": "category", "inverse": True, "data": names, "axisLabel": AXIS,
            "axisTick": {"show": False}, "axisLine": {"lineStyle": {"color": "#8886"}},
        },
        "series": [
            {"name": "here", "type": "bar", "data": money, "color": "#5b7fe0", "barMaxWidth": 11},
            {"name": "an instance per model", "type": "bar", "data": alone, "color": "#8b93a166", "barMaxWidth": 11},
        ],
    }  # fmt: skip


def _names(line: CostLine, by: str) -> list[str]:
    return [line.model] if by == "model" else [line.tenant or HOUSE_NAME, *([] if by else [line.model])]


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:27]}…"


def _span(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 1 else f"{hours * 60:.0f} minutes"


def _money(amount: float) -> str:
    return f"{amount:,.2f}" if abs(amount) >= 1 or not amount else f"{amount:.4f}"
