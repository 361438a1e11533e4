"""Who may do what: a role on a pattern of resources allows actions. Pure, without the database."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from octavo.errors import Forbidden, Invalid, Unauthenticated

Action = Literal["view", "infer", "edit", "admin"]
Role = Literal["viewer", "editor", "admin"]
Kind = Literal["anonymous", "user", "key", "local"]

_RANK_OF_ROLE: dict[str, int] = {"viewer": 1, "editor": 2, "admin": 3}
_RANK_FOR_ACTION: dict[str, int] = {"view": 1, "infer": 1, "edit": 2, "admin": 3}
_PATTERN = re.compile(r"[A-Za-z0-9._/@:*-]{1,200}")


@dataclass(frozen=True, slots=True)
class Grant:
    """A role on every resource that `pattern` matches."""

    role: Role
    pattern: str = "*"


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is behind a request: nobody (`anonymous`), a `user`, a `key` of one, or the machine's own (`local`).

    `name` is the user's; `grants` are the user's own and those of the groups.
    """

    name: str
    kind: Kind
    grants: tuple[Grant, ...] = ()


ANONYMOUS = Principal("anonymous", "anonymous")


def require(principal: Principal, action: Action, resource: str) -> None:
    """Return when `principal` may do `action` on `resource`, such as `models/minilm`.

    A viewer may `view` and `infer`, an editor also `edit`, an admin everything.

    Raises:
        Unauthenticated: not allowed, and nobody is signed in.
        Forbidden: not allowed.
    """
    if allowed(principal, action, resource):
        return
    if principal.kind == "anonymous":
        raise Unauthenticated("sign in first", resource, "Send a token as `Authorization: Bearer ...`, or log in.")
    raise Forbidden(f"{principal.name} may not {action} this", resource, "An admin can grant a role on it.")


def allowed(principal: Principal, action: Action, resource: str) -> bool:
    """Whether `principal` may do `action` on `resource`: what lists are filtered with."""
    needed = _RANK_FOR_ACTION[action]
    return any(_RANK_OF_ROLE[grant.role] >= needed and matches(grant.pattern, resource) for grant in principal.grants)


def matches(pattern: str, resource: str) -> bool:
    """Whether a pattern names a resource; `*` stands for any run of characters, slashes too."""
    first, *rest = pattern.split("*")
    if not rest:
        return resource == first
    *middle, last = rest
    if not resource.startswith(first):
        return False
    at = len(first)
    for part in middle:
        found = resource.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    return len(resource) - at >= len(last) and resource.endswith(last)


def parse_grant(role: str, pattern: str) -> Grant:
    """A grant from outside.

    Raises:
        Invalid: an unknown role, or a pattern with other characters than letters, digits and `._/@:*-`.
    """
    if role not in _RANK_OF_ROLE:
        raise Invalid(f"unknown role {role!r}", "role", f"Use one of {', '.join(get_args(Role))}.")
    if not _PATTERN.fullmatch(pattern):
        raise Invalid(f"not a pattern of resources: {pattern!r}", "pattern", "Write *, models/* or models/acme-*.")
    return Grant(role, pattern)  # type: ignore[arg-type]  # looked up above
