"""The frame around every page of the console: header, navigation, theme, who is signed in."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape

from nicegui import Client, ui

from octavo.access import ANONYMOUS, Principal
from octavo.errors import Unauthenticated
from octavo.web.house import House
from octavo.web.plain import LEAF, theme
from octavo.web.wings import wings

_HEAD = '<link rel="stylesheet" href="/static/style.css"><script src="/static/shell.js"></script>'
_DARK = {"auto": None, "light": False, "dark": True}


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the navigation; greyed with `command` when it has to be installed first.

    A line without an icon stands below the one before it.
    """

    title: str
    icon: str
    path: str
    command: str = ""


class Shell:
    """Draws the frame; `frame` is what the wings' pages get."""

    def __init__(self, house: House) -> None:
        self.entries = [Entry("Overview", "space_dashboard", "/")]
        for wing in wings():
            here = wing.name in house.services
            self.entries.append(Entry(wing.title, wing.icon, wing.path, "" if here else wing.command))
            if here:
                self.entries += [Entry(page.title, "", page.path) for page in wing.pages]
        if house.jobs is not None:
            self.entries.append(Entry("Jobs", "pending_actions", "/jobs"))

    @contextmanager
    def frame(self, title: str) -> Iterator[Principal]:
        """The frame around what is drawn inside the block; yields who is looking.

        Raises:
            Unauthenticated: nobody is signed in.
        """
        client = ui.context.client
        request = client.request
        principal: Principal = request.scope.get("state", {}).get("principal", ANONYMOUS)
        if principal.kind == "anonymous":
            raise Unauthenticated("sign in first", title)
        chosen = theme(request.scope)
        _choose_theme(client, chosen)
        ui.page_title(f"{title} · octavo")
        ui.add_head_html(_HEAD)
        ui.colors(primary="#3257c8")
        ui.html(_header(principal, chosen), tag="header", sanitize=False).classes("o-header")
        with ui.element("div").classes("o-frame"):
            path = request.scope["path"]
            lines = "".join(_line(entry, path) for entry in self.entries)
            ui.html(lines, tag="nav", sanitize=False).classes("o-side").props('aria-label="Main"')
            with ui.element("main").classes("o-page"):
                ui.html(escape(title), tag="h1", sanitize=False)
                yield principal


def _header(principal: Principal, chosen: str) -> str:
    return (
        '<button class="o-icon o-menu" type="button" aria-label="Navigation" onclick="octavoNavigation()">'
        f'<i class="material-icons">menu</i></button><a class="o-brand" href="/">{LEAF}<span>octavo</span></a>'
        '<span class="o-grow"></span>'
        f'<button class="o-icon o-theme" type="button" data-theme="{chosen}" title="Theme: {chosen}" '
        'aria-label="Theme" onclick="octavoTheme(this)"><i class="material-icons"></i></button>'
        '<details class="o-account"><summary class="o-icon" aria-label="Account">'
        '<i class="material-icons">account_circle</i></summary><div>'
        f"<p><strong>{escape(principal.name)}</strong></p>"
        f'<p class="o-quiet o-small">{escape(_rights(principal))}</p><a href="/docs">HTTP interface</a>'
        '<form method="post" action="/logout"><button type="submit">Sign out</button></form></div></details>'
    )


def _line(entry: Entry, path: str) -> str:
    icon, title = f'<i class="material-icons">{entry.icon}</i>', escape(entry.title)
    if entry.command:
        return (
            f'<div class="o-nav o-nav-missing">{icon}<span>{title}<br><code>{escape(entry.command)}</code></span></div>'
        )
    here = path == entry.path or (entry.path != "/" and path.startswith(entry.path + "/"))
    below = "" if entry.icon else " o-nav-below"
    mark = f'class="o-nav{below} o-nav-here" aria-current="page"' if here else f'class="o-nav{below}"'
    return f'<a href="{entry.path}" {mark}>{icon if entry.icon else ""}<span>{title}</span></a>'


def _choose_theme(client: Client, chosen: str) -> None:
    """Have the page come in this browser's theme, so that it does not flash in the other one first."""
    client.page = copy.copy(client.page)
    client.page.dark = _DARK[chosen]


def _rights(principal: Principal) -> str:
    return ", ".join(f"{grant.role} on {grant.pattern}" for grant in principal.grants) or "no role"
