"""Pages without the console's framework: login and errors. They work with scripts switched off."""

from __future__ import annotations

import html
from collections.abc import MutableMapping
from typing import Any

THEMES = ("auto", "light", "dark")
LEAF = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" fill="none">'
    '<rect width="32" height="32" rx="7" fill="#3257c8"/>'
    '<g stroke="#fff" stroke-width="1.6" stroke-linejoin="round" stroke-linecap="round">'
    '<path d="M6 8h20v16H6z"/><path d="M16 8v16M6 16h20" stroke-opacity=".95"/>'
    '<path d="M11 8v16M21 8v16" stroke-opacity=".6" stroke-dasharray="1.2 2.6"/></g></svg>'
)
"""The mark: one sheet folded three times into eight leaves."""


def cookies(scope: MutableMapping[str, Any]) -> dict[str, str]:
    """The request's cookies; those that cannot be read are left out."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        if name == b"cookie":
            for pair in value.decode("latin-1").split(";"):
                key, _, text = pair.strip().partition("=")
                found.setdefault(key, text)
    return found


def theme(scope: MutableMapping[str, Any]) -> str:
    """`auto`, `light` or `dark`, as this browser chose."""
    chosen = cookies(scope).get("octavo_theme", "auto")
    return chosen if chosen in THEMES else "auto"


def cookie(name: str, value: str, *, seconds: int, secure: bool) -> str:
    """A `Set-Cookie` value only the server reads; 0 seconds remove the cookie. `value` is URL-safe base64."""
    return f"{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{'; Secure' if secure else ''}"


def plain_page(scope: MutableMapping[str, Any], title: str, body: str) -> str:
    """A whole page: `body` (markup) in a narrow column, in the browser's theme."""
    chosen = theme(scope)
    dark = {"dark": "body--dark", "light": "body--light", "auto": "o-auto"}[chosen]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)} · octavo</title>"
        '<link rel="icon" href="/static/octavo.svg" type="image/svg+xml">'
        '<link rel="stylesheet" href="/static/style.css"></head>'
        f'<body class="o-plain {dark}"><main class="o-card o-narrow">{body}</main></body></html>'
    )
