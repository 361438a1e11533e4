from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo import errors
from octavo.errors import Busy, OctavoError, Unavailable

ALL = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, OctavoError)]


@given(st.text(min_size=1), st.text(), st.text())
def test_the_problem_holds_all_parts(what: str, where: str, fix: str) -> None:
    error = OctavoError(what, where, fix)
    problem = error.problem()
    assert (problem["detail"], problem.get("where", ""), problem.get("fix", "")) == (what, where, fix)
    assert what in str(error)
    assert where in str(error)
    assert fix in str(error)


def test_empty_parts_leave_no_trace() -> None:
    assert str(OctavoError("it broke")) == "it broke"
    assert set(OctavoError("it broke").problem()) == {"type", "title", "status", "detail"}


@pytest.mark.parametrize("kind", ALL)
def test_every_error_has_a_status_and_a_title(kind: type[OctavoError]) -> None:
    assert 400 <= kind.status < 600
    assert kind.title
    assert kind("what").problem()["status"] == kind.status


@pytest.mark.parametrize("kind", ALL)
def test_every_error_travels_between_processes(kind: type[OctavoError]) -> None:
    error = pickle.loads(pickle.dumps(kind("what", "where", "fix")))
    assert type(error) is kind
    assert str(error) == "what (where). fix"


def test_when_to_ask_again_is_kept() -> None:
    assert Unavailable("x").retry_after == 1.0
    assert pickle.loads(pickle.dumps(Busy("x", retry_after=7.0))).retry_after == 7.0
