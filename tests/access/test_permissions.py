from __future__ import annotations

import dataclasses
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.access import ANONYMOUS, Action, Grant, Principal, Role, allowed, require
from octavo.access.permissions import matches, parse_grant
from octavo.errors import Forbidden, Invalid, Unauthenticated

ROLES: list[Role] = ["viewer", "editor", "admin"]
ACTIONS: list[Action] = ["view", "infer", "edit", "admin"]


def somebody(*grants: Grant) -> Principal:
    return Principal("ann", "user", grants)


@pytest.mark.parametrize(
    ("role", "may"), [("viewer", {"view", "infer"}), ("editor", {"view", "infer", "edit"}), ("admin", set(ACTIONS))]
)
def test_a_role_allows_its_actions(role: Role, may: set[Action]) -> None:
    ann = somebody(Grant(role, "models/*"))
    assert {action for action in ACTIONS if allowed(ann, action, "models/minilm")} == may
    assert not any(allowed(ann, action, "jobs/1") for action in ACTIONS)


def test_who_may_not_is_told_why() -> None:
    with pytest.raises(Unauthenticated):
        require(ANONYMOUS, "view", "models/minilm")
    with pytest.raises(Forbidden, match="ann may not edit") as caught:
        require(somebody(Grant("viewer")), "edit", "models/minilm")
    assert caught.value.where == "models/minilm"
    require(somebody(Grant("viewer")), "infer", "models/minilm")


def test_a_principal_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ANONYMOUS.kind = "local"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("pattern", "resource", "fits"),
    [
        ("*", "", True),
        ("models/*", "models/a/b", True),
        ("models/*", "models", False),
        ("models/*", "xmodels/a", False),
        ("models/acme-*", "models/acme-1", True),
        ("models/acme-*", "models/acm", False),
        ("models/a", "models/a", True),
        ("models/a", "models/ab", False),
        ("a*a", "a", False),
        ("*/v1", "models/v1", True),
        ("a**b", "ab", True),
        ("a.c", "abc", False),
    ],
)
def test_patterns(pattern: str, resource: str, fits: bool) -> None:
    assert matches(pattern, resource) is fits


@given(st.text(alphabet="ab/*", max_size=10), st.text(alphabet="ab/", max_size=12))
def test_patterns_are_what_a_regular_expression_says(pattern: str, resource: str) -> None:
    expression = ".*".join(re.escape(part) for part in pattern.split("*"))
    assert matches(pattern, resource) is bool(re.fullmatch(expression, resource))


grants = st.builds(Grant, st.sampled_from(ROLES), st.sampled_from(["*", "models/*", "models/a", "jobs/*"]))


@given(st.lists(grants, max_size=4), grants, st.sampled_from(ACTIONS), st.sampled_from(["models/a", "jobs/7", "x"]))
def test_a_grant_more_never_takes_away(held: list[Grant], more: Grant, action: Action, resource: str) -> None:
    if allowed(somebody(*held), action, resource):
        assert allowed(somebody(*held, more), action, resource)


@given(st.lists(grants, max_size=4), st.sampled_from(["models/a", "jobs/7", "x"]))
def test_who_may_more_may_less(held: list[Grant], resource: str) -> None:
    may = [allowed(somebody(*held), action, resource) for action in ACTIONS]
    assert may == sorted(may, reverse=True)


@given(st.sampled_from(ACTIONS), st.text(max_size=20))
def test_nobody_may_nothing(action: Action, resource: str) -> None:
    assert not allowed(ANONYMOUS, action, resource)


@pytest.mark.parametrize(
    ("role", "pattern"), [("owner", "*"), ("viewer", ""), ("viewer", "a b"), ("viewer", "x" * 201)]
)
def test_wrong_grants_are_refused(role: str, pattern: str) -> None:
    with pytest.raises(Invalid):
        parse_grant(role, pattern)


def test_asking_who_may_needs_no_database() -> None:
    program = "import sys, octavo.access; print('sqlalchemy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
