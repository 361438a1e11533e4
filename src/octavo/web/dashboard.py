"""`/`: what is running, at a glance."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager
from html import escape
from typing import Any, cast

from nicegui import ui

from octavo.access import Principal, require
from octavo.web.health import status_of
from octavo.web.house import House
from octavo.web.wings import wings

Frame = Callable[[str], AbstractContextManager[Principal]]
_REFRESH_SECONDS = 5.0


def register(house: House, frame: Frame) -> None:
    """Declare the page."""

    @ui.page("/")
    async def overview() -> None:
        with frame("Overview") as principal:
            require(principal, "view", "status")
            figures = ui.html(sanitize=False).classes("o-wide")

            async def refresh() -> None:
                figures.set_content(draw(await asyncio.to_thread(status_of, house)))

            await refresh()
            ui.timer(_REFRESH_SECONDS, refresh)


def draw(status: dict[str, Any]) -> str:
    """The page's markup for a status as `/api/status` gives it."""
    cards = [
        _figure(duration(status["uptime"]), "running"),
        _figure(size(status["memory"]), "memory"),
        _figure(str(status["jobs"]), "jobs running"),
    ]
    about = {wing.name: (wing.path, wing.about) for wing in wings()}
    systems = [_system(entry, *about[entry["name"]]) for entry in status["wings"]]
    facts = [("Version", status["version"]), ("Workspace", status["workspace"]), ("Process", str(status["pid"]))]
    rows = "".join(f"<tr><th>{name}</th><td class='o-mono'>{escape(value)}</td></tr>" for name, value in facts)
    return (
        f'<div class="o-grid">{"".join(cards)}</div><h2>Systems</h2><div class="o-grid">{"".join(systems)}</div>'
        f'<h2>Server</h2><div class="o-card o-scroll"><table class="o-table o-facts">{rows}</table></div>'
    )


def duration(seconds: float) -> str:
    """`3 d 4 h`, `4 h 5 min`, `5 min`, `12 s`."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{int(seconds)} s"


def size(count: float) -> str:
    """`1.5 GiB`, `180 MiB`."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _figure(value: str, caption: str) -> str:
    return (
        f'<div class="o-card o-figure"><div class="o-figure-value">{escape(value)}</div>'
        f'<div class="o-figure-caption">{escape(caption)}</div></div>'
    )


def _system(entry: dict[str, Any], path: str, about: str) -> str:
    title, line = escape(cast(str, entry["title"])), f'<p class="o-quiet">{escape(about)}</p>'
    if "figure" not in entry:
        command = escape(cast(str, entry["command"]))
        return (
            f'<div class="o-card o-missing"><h3>{title} <span class="o-tag">not installed</span></h3>'
            f"{line}<code>{command}</code></div>"
        )
    figure, caption = escape(cast(str, entry["figure"])), escape(cast(str, entry["caption"]))
    return (
        f'<a class="o-card o-link" href="{path}"><h3>{title}</h3>{line}'
        f'<div class="o-figure-value">{figure}</div><div class="o-figure-caption">{caption}</div></a>'
    )
