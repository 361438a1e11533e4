"""Pages of the console in Chromium: a window that is signed in, and people with few rights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from octavo.access import Access
from octavo.settings import load_settings
from octavo.storage import Database

from .live import Up

WIDE, NARROW = (1280, "light"), (390, "dark")


@contextmanager
def window(browser: Any, server: Up, path: str, form: tuple[int, str] = WIDE, token: str = "") -> Iterator[Any]:
    """A page, open and signed in; at its end nothing may stick out, and nothing may have gone wrong in it."""
    width, scheme = form
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(15_000)
    page.goto(f"{server.url}/login?token={token or server.token}")
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda note: problems.append(note.text) if note.type in ("error", "warning") else None)
    page.goto(server.url + path)
    page.wait_for_selector("main h1")
    yield page
    over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    context.close()
    assert over == 0
    assert not problems, problems


def guest(server: Up, name: str, role: str, pattern: str) -> str:
    """The token of a new user with one role."""
    settings = load_settings(server.workspace)
    database = Database(settings.database_url)
    try:
        access = Access.open(database, settings)
        access.add_user(name)
        access.grant(name, role, pattern)
        return access.create_key(name).secret
    finally:
        database.close()
