"""`/endpoints`: who gets which share of an endpoint's traffic and what became of it, live; make, change, remove."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from html import escape
from typing import Any

from nicegui import ui

from octavo.access import Principal, allowed, require
from octavo.errors import OctavoError
from octavo.serving.endpoint import Endpoint
from octavo.serving.packaging.deploy import Deployer
from octavo.serving.pages.console import (
    REFRESH_SECONDS,
    Console,
    Search,
    agreement_of,
    dot,
    empty,
    errors_of,
    latency_of,
    may_change_some,
    percent,
    split_bar,
    sure,
    table,
    told,
)
from octavo.serving.pages.endpoint_form import EndpointForm
from octavo.serving.traffic import VariantStatistics

_ABOUT = (
    "An endpoint is a name that clients ask as they ask a model. Its variants share the traffic; "
    "a shadow gets copies and answers nobody. Counts are since the server started, latencies of the last minute."
)


def register(console: Console) -> None:
    """Declare the page."""

    @ui.page("/endpoints")
    async def endpoints_page() -> None:
        with console.frame("Endpoints") as principal:
            await _Page(console, principal).draw()


class _Page:
    """One open page."""

    def __init__(self, console: Console, principal: Principal) -> None:
        self._console, self._principal = console, principal
        self._shown: list[tuple[str, bool]] = []
        self._bodies: dict[str, ui.html] = {}

    async def draw(self) -> None:
        ui.html(f'<p class="o-quiet o-lead">{_ABOUT}</p>', sanitize=False)
        if may_change_some(self._principal):
            ui.button("New endpoint", icon="add", on_click=self._opener("")).props("unelevated no-caps").classes(
                "o-new"
            )
        self._search = Search("Search endpoints", self._refresh)
        self._list = ui.element("div").classes("o-stack o-wide")
        await self._refresh(first=True)
        ui.timer(REFRESH_SECONDS, self._refresh)

    async def _refresh(self, first: bool = False) -> None:
        deployed = await self._deployed()
        every = [one for one in self._console.service.endpoints.all() if self._may("view", one.name)]
        found = self._search.pick(every, lambda one: one.name)
        shown = [(one.name, one.name in deployed) for one in found]
        if first or shown != self._shown:
            self._shown = shown
            self._rebuild(bool(every))
        for endpoint in found:
            counts = {one.variant: one for one in self._console.service.traffic.statistics(endpoint.name)}
            drawn = _draw(endpoint, counts)
            body = self._bodies[endpoint.name]
            if body.content != drawn:
                body.set_content(drawn)

    async def _deployed(self) -> set[str]:
        """Endpoints that a deployment keeps."""
        try:
            return {one.name for one in await Deployer(self._console.service, self._console.settings).all()}
        except OctavoError:  # the counts are worth showing without it
            return {name for name, deployed in self._shown if deployed}

    def _rebuild(self, some: bool) -> None:
        self._list.clear()
        self._bodies.clear()
        with self._list:
            if not some:
                ui.html(
                    empty(
                        "No endpoint yet. Make one to share traffic between two versions of a model:",
                        "octavo endpoints set NAME old=MODEL@1:90 new=MODEL@2:10",
                    ),
                    sanitize=False,
                )
            for name, deployed in self._shown:
                with ui.element("section").classes("o-card o-wide").props(f'aria-label="{escape(name)}"'):
                    self._draw_head(name, deployed)
                    self._bodies[name] = ui.html(sanitize=False).classes("o-wide")

    def _draw_head(self, name: str, deployed: bool) -> None:
        with ui.element("div").classes("o-row o-wide o-head"):
            ui.html(f"<h2>{escape(name)}</h2>", sanitize=False)
            if deployed:
                ui.html('<a class="o-tag o-busy" href="/rollouts">roll-out</a>', sanitize=False)
            ui.element("span").classes("o-grow")
            if self._may("edit", name):
                for label, act in (("Change", self._opener(name)), ("Remove", self._remover(name))):
                    ui.button(label, on_click=act).props(f'flat dense no-caps aria-label="{label} {escape(name)}"')

    def _opener(self, name: str) -> Callable[[], Coroutine[Any, Any, None]]:
        """Opens the form; for a new endpoint where the name is empty."""

        async def open_form() -> None:
            service = self._console.service
            try:
                names = await asyncio.to_thread(service.repository.names)
                known = await service.endpoints.get(name) if name else None
            except OctavoError as error:
                ui.notify(str(error), type="negative", multi_line=True)
                return
            models = [one for one in names if allowed(self._principal, "infer", f"models/{one}")]
            held = any(one == (name, True) for one in self._shown)
            form = EndpointForm(service, self._principal, models, known[0] if known else None, held)
            if await form.ask(known[1].revision if known else 0):
                await self._refresh()

        return open_form

    def _remover(self, name: str) -> Callable[[], Coroutine[Any, Any, None]]:
        async def remove() -> None:
            text = "Requests for this name are refused then, unless a model is named so. Its models stay."
            if await sure(f"Remove {name}?", text, "Remove it"):
                await told(self._remove(name), f"{name} is gone")
                await self._refresh()

        return remove

    async def _remove(self, name: str) -> None:
        require(self._principal, "edit", f"models/{name}")
        await self._console.service.endpoints.delete(name)

    def _may(self, action: Any, name: str) -> bool:
        return allowed(self._principal, action, f"models/{name}")


def _draw(endpoint: Endpoint, counts: dict[str, VariantStatistics]) -> str:
    """The split of the traffic as a bar, and a line per variant."""
    shares = shares_of(endpoint)
    parts = [(one.name, shares[one.name]) for one in endpoint.live]
    bar = split_bar(parts, ", ".join(f"{name} {percent(share)}" for name, share in parts))
    rows: list[tuple[str, ...]] = []
    for at, one in enumerate((*endpoint.live, *endpoint.shadows)):
        seen = counts.get(one.name)
        version = f'<span class="o-quiet"> {escape(one.version or "default")}</span>'
        rows.append(
            (
                f"{'' if one.shadow else dot(at)}{escape(one.name)}",
                f"{escape(one.model)}{version}",
                f"{percent(shares[one.name])}{' copied' if one.shadow else ''}",
                f"{seen.requests:,}" if seen else "0",
                errors_of(seen),
                latency_of(seen, 0.5),
                latency_of(seen, 0.99),
                agreement_of(seen) if one.shadow else "",
            )
        )
    titles = ["Variant", "Model", "Share", "Requests", "Errors", "p50 ms", "p99 ms", "Agreed"]
    if not endpoint.shadows:
        titles, rows = titles[:-1], [row[:-1] for row in rows]
    return bar + table(titles, rows, len(titles) - 2)


def shares_of(endpoint: Endpoint) -> dict[str, float]:
    """Each variant's share of the requests: of all for those that answer, copied for shadows."""
    live = endpoint.live
    total = sum(one.weight for one in live)
    shares = {one.name: one.weight / total if total else float(one is live[0]) for one in live}
    return shares | {one.name: one.weight for one in endpoint.shadows}
