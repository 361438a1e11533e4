"""`/rollouts`: what is deployed, how the new version does beside the old one, and who gets how much of the traffic."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from html import escape
from typing import Any

from nicegui import ui

from octavo.access import Principal, allowed, require
from octavo.errors import OctavoError
from octavo.serving.packaging.deploy import Deployer
from octavo.serving.packaging.deployment import Deployment, Event, Release, variant_name
from octavo.serving.pages.console import (
    REFRESH_SECONDS,
    Console,
    Search,
    agreement_of,
    alert,
    dot,
    empty,
    errors_of,
    latency_of,
    percent,
    split_bar,
    sure,
    tag,
    told,
)
from octavo.serving.traffic import VariantStatistics

_ABOUT = (
    "A new version gets a share of the traffic, or copies of it, beside the stable one. "
    "Compare the two, give it more, then promote it or roll it back."
)
_STEPS = (0.05, 0.25, 0.5, 1.0)
_WORDS = {"deploy": "deployed", "roll-out": "share changed", "promote": "promoted", "roll-back": "rolled back"}

Act = Callable[[Deployer], Coroutine[Any, Any, Deployment]]


def register(console: Console) -> None:
    """Declare the page."""

    @ui.page("/rollouts")
    async def rollouts_page() -> None:
        with console.frame("Roll-outs") as principal:
            await _Page(console, principal).draw()


class _Page:
    """One open page."""

    def __init__(self, console: Console, principal: Principal) -> None:
        self._console, self._principal = console, principal
        self._deployer = Deployer(console.service, console.settings, principal.name)
        self._cards: dict[str, _Card] = {}

    async def draw(self) -> None:
        ui.html(f'<p class="o-quiet o-lead">{_ABOUT}</p>', sanitize=False)
        self._problem = ui.html(sanitize=False).classes("o-wide")
        self._search = Search("Search roll-outs", self._refresh)
        self._list = ui.element("div").classes("o-stack o-wide")
        await self._refresh(first=True)
        ui.timer(REFRESH_SECONDS, self._refresh)

    async def _refresh(self, first: bool = False) -> None:
        try:
            every = await self._deployer.all()
        except OctavoError as error:
            self._problem.set_content(alert(error))
            return
        self._problem.set_content("")
        seen = [one for one in every if allowed(self._principal, "view", f"models/{one.name}")]
        seen.sort(key=lambda one: one.candidate is None and not one.error)  # first what somebody may have to decide
        found = self._search.pick(seen, lambda one: one.name)
        if first or [one.name for one in found] != list(self._cards):
            self._rebuild(found, bool(seen))
        for one in found:
            counts = {each.variant: each for each in self._console.service.traffic.statistics(one.name)}
            self._cards[one.name].show(one, counts)

    def _rebuild(self, found: list[Deployment], some: bool) -> None:
        self._list.clear()
        with self._list:
            if not some:
                ui.html(
                    empty(
                        "Nothing is deployed yet. Deploy a package, an archive or a folder of a model:",
                        "octavo models deploy SOURCE --name NAME",
                        "octavo models deploy NEWER --name NAME --share 5%",
                    ),
                    sanitize=False,
                )
            may = {one.name: allowed(self._principal, "edit", f"models/{one.name}") for one in found}
            self._cards = {one.name: _Card(one.name, may[one.name], self._change) for one in found}

    async def _change(self, name: str, act: Act, done: str) -> None:
        async def change() -> None:
            require(self._principal, "edit", f"models/{name}")
            await act(self._deployer)

        await told(change(), f"{name}: {done}")
        await self._refresh()


class _Card:
    """One deployment: both versions, what can be done, and what was done."""

    def __init__(self, name: str, may_edit: bool, change: Callable[[str, Act, str], Coroutine[Any, Any, None]]) -> None:
        self._name, self._may_edit, self._change = name, may_edit, change
        self._record = Deployment(name=name)
        with ui.element("section").classes("o-card o-wide").props(f'aria-label="{escape(name)}"'):
            self._state = ui.html(sanitize=False).classes("o-row o-wide o-head")
            self._body = ui.html(sanitize=False).classes("o-wide")
            self._actions = ui.element("div").classes("o-row o-wide o-actions-row")
        with self._actions:
            ui.label("Share of the new version").classes("o-quiet o-small")
            with ui.element("div").classes("o-steps"):
                self._steps = {step: self._draw_step(step) for step in _STEPS}
            ui.element("span").classes("o-grow")
            self._back = ui.button("Roll back", on_click=self._roll_back).props("outline no-caps")
            self._promote = ui.button("Promote", on_click=self._ask_promote).props("unelevated no-caps")

    def show(self, record: Deployment, counts: dict[str, VariantStatistics]) -> None:
        """Bring it up to date."""
        self._record = record
        _set(self._state, _draw_state(record))
        _set(self._body, _draw_body(record, counts))
        candidate = record.candidate is not None
        self._actions.set_visibility(self._may_edit and (candidate or record.previous is not None))
        for element in self._actions.default_slot.children[:2]:
            element.set_visibility(candidate)
        self._promote.set_visibility(candidate)
        for step, button in self._steps.items():
            here = candidate and not record.shadow and abs(record.share - step) < 1e-9
            button.props("aria-pressed=true" if here else "aria-pressed=false")

    def _draw_step(self, step: float) -> ui.button:
        label = percent(step)
        button = ui.button(label, on_click=lambda: self._roll_out(step)).props("flat dense no-caps")
        return button.props(f'aria-label="{label} of the traffic to the new version of {escape(self._name)}"')

    async def _roll_out(self, share: float) -> None:
        name, version = self._name, self._record.candidate.version if self._record.candidate else ""
        await self._change(name, lambda to: to.roll_out(name, share), f"version {version} gets {percent(share)}")

    async def _ask_promote(self) -> None:
        new, old = self._record.candidate, self._record.stable
        if new is None:
            return
        after = f" Version {old.version} stays ready for a roll-back." if old else ""
        text = f"Version {new.version} takes all of the traffic.{after}"
        if await sure(f"Promote version {new.version} of {self._name}?", text, "Promote it"):
            await self._change(self._name, lambda to: to.promote(self._name), f"version {new.version} answers")

    async def _roll_back(self) -> None:
        new, before, stable = self._record.candidate, self._record.previous, self._record.stable
        if new is not None:
            text, goal = f"Version {new.version} gets no more traffic.", stable
        else:
            text, goal = "The version before takes all of the traffic again.", before
        version = goal.version if goal else ""
        if await sure(f"Roll {self._name} back to version {version}?", text, "Roll it back"):
            await self._change(self._name, lambda to: to.roll_back(self._name), f"version {version} answers again")


def _set(element: ui.html, drawn: str) -> None:
    if element.content != drawn:
        element.set_content(drawn)


def _draw_state(record: Deployment) -> str:
    if record.error or record.step == "failed":
        state = tag("failed", "o-bad")
    elif record.step != "done":
        state = tag(record.step, "o-busy", "A change is under way")
    elif record.candidate is not None:
        state = tag("copies" if record.shadow else "rolling out", "o-busy")
    else:
        state = tag("stable", "o-good")
    return f"<h2>{escape(record.name)}</h2>{state}"


def _draw_body(record: Deployment, counts: dict[str, VariantStatistics]) -> str:
    """The split of the traffic, both versions side by side, and what was done."""
    stable, candidate, share = record.stable, record.candidate, record.share
    parts = [
        (f"version {release.version}", part) for release, part in ((stable, 1 - share), (candidate, share)) if release
    ]
    bar = split_bar(parts, ", ".join(f"{name} {percent(part)}" for name, part in parts)) if parts else ""
    log = _draw_log(record.history)
    return f'{alert(record.error)}{bar}<div class="o-pair">{_draw_releases(record, counts)}{log}</div>'


def _draw_releases(record: Deployment, counts: dict[str, VariantStatistics]) -> str:
    """A column for each version, so that a person sees at a glance whether the new one does worse."""
    columns = []
    for at, release in enumerate((record.stable, record.candidate)):
        if release is None:
            continue
        seen = counts.get(variant_name(release))
        share = record.share if at else 1 - record.share
        columns.append(
            [
                f"{dot(at)}{'candidate' if at else 'stable'}",
                _draw_release(release),
                f"copies of {percent(record.shadow)}" if at and record.shadow else percent(share),
                f"{seen.requests:,}" if seen else "0",
                errors_of(seen),
                latency_of(seen, 0.5),
                latency_of(seen, 0.99),
                agreement_of(seen) if at else "",
            ]
        )
    names = ["", "Version", "Share", "Requests", "Errors", "p50 ms", "p99 ms"] + ["Agreed"] * bool(record.shadow)
    heads = "".join(f'<th class="o-number">{column[0]}</th>' for column in columns)
    rows = "".join(
        f"<tr><th>{name}</th>{''.join(f'<td class=o-number>{column[at]}</td>' for column in columns)}</tr>"
        for at, name in enumerate(names)
        if at
    )
    return f'<table class="o-table"><thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table>'


def _draw_release(release: Release) -> str:
    digest = f' <span class="o-mono o-quiet" title="package {release.digest}">{release.digest[:8]}</span>'
    return f"{escape(release.version)}{digest if release.digest else ''}"


def _draw_log(history: tuple[Event, ...]) -> str:
    """What was done, the newest first."""
    if not history:
        return ""
    lines = "".join(_draw_event(event) for event in reversed(history))
    return f'<div class="o-log"><h3>History (UTC)</h3><ol tabindex="0">{lines}</ol></div>'


def _draw_event(event: Event) -> str:
    when = datetime.fromtimestamp(event.at, UTC)
    what = f"failed: {event.error}" if event.error else _WORDS[event.action]
    state = ""
    if not event.error:
        copies = f"copies of {percent(event.shadow)}" if event.shadow else f"{percent(event.share)}"
        state = f"{event.stable}" + (f", {copies} to {event.candidate}" if event.candidate else "")
    by = f" by {event.by}" if event.by else ""
    return (
        f'<li><time datetime="{when.isoformat()}">{when:%Y-%m-%d %H:%M:%S}</time>'
        f'<span>{escape(what)}{escape(by)}</span><span class="o-quiet">{escape(state)}</span></li>'
    )
