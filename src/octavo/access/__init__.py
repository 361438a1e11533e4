"""Who may do what: users, groups, API keys, roles, console sessions.

from octavo.access import Access, require

access = Access.open(database, settings)
secret = access.create_key("alice", label="notebook").secret
principal = access.authenticate(secret)
require(principal, "infer", "models/minilm")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.access.permissions import ANONYMOUS, Action, Grant, Principal, Role, allowed, require

if TYPE_CHECKING:
    from octavo.access.service import Access

__all__ = ["ANONYMOUS", "Access", "Action", "Grant", "Principal", "Role", "allowed", "require"]


def __getattr__(name: str) -> object:
    """`Access` brings SQLAlchemy along, so it is loaded when first asked for."""
    if name != "Access":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from octavo.access.service import Access

    return Access
