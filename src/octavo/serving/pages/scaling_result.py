"""What a dry run found: figures, charts over time, and every change with its reason."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from html import escape
from itertools import accumulate
from typing import Any

from nicegui import ui

from octavo.serving.autoscaling.policy import ScalingPolicy
from octavo.serving.autoscaling.simulator import Period, Simulation
from octavo.serving.pages.console import AXIS, GRID_LINE, LEGEND, figures, percent

_MOST_POINTS = 1_000
_MOST_CHANGES = 200
_LONG = 180
"""Minutes from which on time is told in hours."""
_BLUE, _GREY, _RED, _GREEN = "#5b7fe0", "#8b93a1", "#d0605a", "#2f8f83"
_REASONS = {
    "memory_utilisation": "memory over its target",
    "invocations_per_instance": "requests over their target",
    "all below target": "everything below its target",
    "bounds": "the policy's bounds",
}

Values = Sequence[float]


class ScalingResult:
    """The place where it is shown; empty until `show`."""

    def __init__(self) -> None:
        self._figures = ui.html(sanitize=False).classes("o-wide o-above")
        with ui.element("div").classes("o-pair o-charts") as self._charts:
            self._drawn = [self._chart(title) for title in ("Instances", "Memory", "Load of an instance", "Cost")]
        self._changes = ui.html(sanitize=False).classes("o-wide o-above")
        self._charts.set_visibility(False)

    def show(self, found: Simulation, policy: ScalingPolicy) -> None:
        """Show another dry run."""
        self._figures.set_content(_draw_figures(found))
        self._changes.set_content(_draw_changes(found.tracked.periods, policy.min_capacity))
        self._charts.set_visibility(True)
        for chart, options in zip(self._drawn, _options(found, policy), strict=True):
            chart.options.clear()
            chart.options.update(options)
            chart.update()

    def _chart(self, title: str) -> ui.echart:
        with ui.element("div").classes("o-card"):
            ui.html(f"<h3>{title}</h3>", sanitize=False)
            return ui.echart({}).style("height: 240px")


def periods_csv(found: Simulation) -> bytes:
    """A line per minute, with the fields of `Period`."""
    written = io.StringIO()
    writer = csv.DictWriter(written, [field.name for field in fields(Period)])
    writer.writeheader()
    writer.writerows(asdict(period) for period in found.tracked.periods)
    return written.getvalue().encode()


def _draw_figures(found: Simulation) -> str:
    total = found.tracked
    cards = [(f"{total.cost:,.2f}", f"for {total.instance_hours:,.1f} instance hours, {total.peak:,} at the peak")]
    for cost, name in (
        (found.fixed.cost, f"a fixed fleet of {found.fixed_instances}: {found.fixed.cost:,.2f}"),
        (found.per_model_cost, f"an instance for each of {total.models} models: {found.per_model_cost:,.2f}"),
    ):
        saved = 1 - total.cost / cost if cost else 0.0
        cards.append((percent(saved), f"saved against {name}"))
    cards += [
        (f"{total.cold_starts:,}", f"cold starts of {total.requests:,} requests"),
        (f"{total.over_capacity:,}", "requests over an instance's capacity"),
    ]
    return figures(cards)


def _draw_changes(periods: Sequence[Period], start: int) -> str:
    changed, before = [], start
    for period in periods:
        if period.wanted != before:
            changed.append((period, before))
        before = period.wanted
    if not changed:
        return '<p class="o-quiet">The fleet never changed.</p>'
    lines = "".join(
        f"<li><time>minute {period.t_s / 60:,.0f}</time><span>{was} → {period.wanted}</span>"
        f'<span class="o-quiet">{escape(_REASONS.get(period.reason, period.reason))}</span></li>'
        for period, was in changed[:_MOST_CHANGES]
    )
    more = f"<li>{len(changed) - _MOST_CHANGES:,} more</li>" if len(changed) > _MOST_CHANGES else ""
    return f'<div class="o-card o-log"><h3>Changes</h3><ol tabindex="0">{lines}{more}</ol></div>'


def _options(found: Simulation, policy: ScalingPolicy) -> list[dict[str, Any]]:
    """The four charts'."""
    periods, fixed = found.tracked.periods, found.fixed.periods
    long = periods[-1].t_s / 60 > _LONG
    unit = 3600 if long else 60
    width = -(-len(periods) // _MOST_POINTS)
    at = [group[-1].t_s / unit for group in _groups(periods, width)]

    def line(name: str, values: Values, colour: str, **more: Any) -> dict[str, Any]:
        pick: Callable[[Values], float] = more.pop("pick", max)
        points = [[x, round(pick(group), 4)] for x, group in zip(at, _groups(values, width), strict=True)]
        return {"name": name, "type": "line", "showSymbol": False, "data": points, "color": colour} | more

    def target(value: float | None) -> list[dict[str, Any]]:
        if value is None:
            return []
        ends = [[0, value], [at[-1], value]]
        dashed = {"lineStyle": {"type": "dashed", "width": 1.5}, "symbol": "none"}
        return [{"name": f"target {value:g}", "type": "line", "data": ends, "color": _RED} | dashed]

    demand = [period.invocations_per_instance * period.running for period in periods]
    dotted = {"lineStyle": {"type": "dotted", "width": 2}}
    last: Callable[[Values], float] = lambda group: group[-1]  # noqa: E731
    area = {"areaStyle": {"opacity": 0.12}, "lineStyle": {"width": 0}, "yAxisIndex": 1, "z": 1}
    paid = list(accumulate(period.cost for period in periods))
    paid_fixed = list(accumulate(period.cost for period in fixed))
    time = "hours" if long else "minutes"
    count = [
        line("requests/min", demand, _GREEN, **area),
        line("instances", [period.instances for period in periods], _BLUE, step="start", z=3),
        line("fixed fleet", [period.instances for period in fixed], _GREY, **dotted),
    ]
    memory = [line("percent", [period.memory_utilisation for period in periods], _BLUE)]
    load = [line("requests/min", [period.invocations_per_instance for period in periods], _BLUE)]
    money = [line("this policy", paid, _BLUE, pick=last), line("fixed fleet", paid_fixed, _GREY, pick=last, **dotted)]
    return [
        _chart(time, at[-1], count, whole=True),
        _chart(time, at[-1], memory + target(policy.memory_utilisation)),
        _chart(time, at[-1], load + target(policy.invocations_per_instance)),
        _chart(time, at[-1], money),
    ]


def _chart(time: str, end: float, series: list[dict[str, Any]], *, whole: bool = False) -> dict[str, Any]:
    """A chart over time; with `whole` numbers at the left and a second axis for demand at the right."""
    value = {"type": "value", "axisLabel": AXIS, "splitLine": GRID_LINE, "min": 0}
    left = value | ({"minInterval": 1} if whole else {})
    right = value | {"splitLine": {"show": False}}
    return {
        "grid": {"left": 4, "right": 12, "top": 36, "bottom": 22, "containLabel": True},
        "legend": LEGEND,
        "tooltip": {"trigger": "axis"},
        "animation": False,
        "xAxis": {
            "type": "value", "name": time, "nameLocation": "middle", "nameGap": 26, "nameTextStyle": AXIS, "max": end,
            "minInterval": 1, "axisLabel": AXIS | {"showMaxLabel": False, "hideOverlap": True},
            "splitLine": {"show": False},
        },
        "yAxis": [left, right] if whole else left,
        "series": series,
    }  # fmt: skip


def _groups(values: Sequence[Any], width: int) -> list[Sequence[Any]]:
    """Neighbours put together, so that a month is not forty thousand points."""
    return [values[start : start + width] for start in range(0, len(values), width)]
