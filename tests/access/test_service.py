from __future__ import annotations

import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.access import allowed
from octavo.access.memory import PrincipalMemory
from octavo.access.passwords import GuessLimit
from octavo.access.permissions import ANONYMOUS, Principal
from octavo.access.service import Access
from octavo.errors import Busy, Unauthenticated
from octavo.settings import load_settings
from octavo.storage import Database


class Clock(Protocol):
    """The fixture `clock`."""

    def __call__(self) -> datetime: ...
    def pass_(self, **spans: float) -> None: ...


def reopened(access: Access, tmp_path: Path, **flags: object) -> Access:
    """The same accounts seen by another process: nothing remembered."""
    return Access.open(access.database, load_settings(tmp_path, **flags), access._now)


def statements(access: Access) -> list[str]:
    """What the database is asked from now on."""
    from sqlalchemy import event

    asked: list[str] = []
    event.listen(access.database.engine, "before_cursor_execute", lambda *args: asked.append(args[2]))
    return asked


def test_the_first_start_makes_an_admin_once(access: Access, tmp_path: Path) -> None:
    token = access.first_start()
    assert token is not None
    assert access.first_start() is None
    principal = reopened(access, tmp_path).authenticate(token)
    assert principal is not None
    assert (principal.name, principal.kind) == ("admin", "key")
    assert allowed(principal, "admin", "anything")


def test_users_made_before_do_not_stand_in_for_an_admin(access: Access) -> None:
    access.add_user("ann", role="viewer")
    access.add_user("admin")
    token = access.first_start()
    assert token is not None
    principal = access.authenticate(token)
    assert principal is not None
    assert allowed(principal, "admin", "x")


def test_a_fixed_token_is_the_admin_token(access: Access, tmp_path: Path) -> None:
    fixed = reopened(access, tmp_path, token="correct-horse")
    assert fixed.first_start() is None
    assert [user.name for user in fixed.list_users()] == ["admin"]
    assert fixed.list_keys() == []
    principal = fixed.authenticate("correct-horse")
    assert principal is not None
    assert allowed(principal, "admin", "x")
    assert fixed.authenticate("correct-hors") is None
    assert access.authenticate("correct-horse") is None


def test_processes_starting_at_once_make_one_admin(database_url: str, tmp_path: Path) -> None:
    program = (
        "import sys; from octavo.settings import load_settings; from octavo.storage import Database\n"
        "from octavo.access import Access\n"
        "database = Database(sys.argv[1]); database.upgrade()\n"
        "print(Access.open(database, load_settings(sys.argv[2])).first_start())"
    )
    command = [sys.executable, "-c", program, database_url, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = sorted(process.communicate()[0].strip() for process in running)
    assert printed[:2] == ["None", "None"]
    assert printed[2].startswith("octavo_")


def test_a_run_token_lives_in_this_process_only(access: Access, tmp_path: Path) -> None:
    token = access.issue_run_token()
    principal = access.authenticate(token)
    assert principal is not None
    assert principal.kind == "local"
    assert allowed(principal, "admin", "x")
    access.add_user("ann")  # a change makes it forget principals, not this one
    assert access.authenticate(token) == principal
    assert reopened(access, tmp_path).authenticate(token) is None


def test_a_key_acts_as_its_owner(access: Access) -> None:
    access.add_user("ann")
    access.add_group("team")
    access.join("team", "ann")
    access.grant("ann", "viewer", "models/*")
    access.grant("group:team", "editor", "jobs/*")
    key = access.create_key("ann").secret
    principal = access.authenticate(key)
    assert principal is not None
    assert principal.name == "ann"
    assert allowed(principal, "infer", "models/m")
    assert allowed(principal, "edit", "jobs/1")
    assert not allowed(principal, "edit", "models/m")
    access.revoke("group:team", "jobs/*")
    principal = access.authenticate(key)
    assert principal is not None
    assert not allowed(principal, "view", "jobs/1")
    assert access.list_keys()[0].last_used is not None


def test_a_known_token_asks_no_database(access: Access) -> None:
    access.add_user("ann", "long enough")
    key, session = access.create_key("ann").secret, access.login("ann", "long enough")
    first = access.authenticate(key), access.session(session)
    asked = statements(access)
    assert (access.authenticate(key), access.session(session)) == first
    assert asked == []


def test_revoked_expired_and_disabled_keys_are_nobodys(access: Access, clock: Clock, tmp_path: Path) -> None:
    access.add_user("ann")
    keys = [
        access.create_key("ann"),
        access.create_key("ann"),
        access.create_key("ann", expires=clock() + timedelta(1)),
    ]
    assert all(access.authenticate(key.secret) for key in keys)
    access.revoke_key(keys[0].prefix)
    assert access.authenticate(keys[0].secret) is None
    clock.pass_(days=2)
    assert reopened(access, tmp_path).authenticate(keys[2].secret) is None
    assert access.authenticate(keys[1].secret)
    access.set_disabled("ann")
    assert access.authenticate(keys[1].secret) is None
    access.set_disabled("ann", False)
    assert access.authenticate(keys[1].secret)
    access.remove_user("ann")
    assert access.authenticate(keys[1].secret) is None


def test_a_key_with_another_secret_is_nobodys(access: Access) -> None:
    access.add_user("ann")
    key = access.create_key("ann").secret
    assert access.authenticate(key[:-1] + ("a" if key[-1] != "a" else "b")) is None
    assert access.authenticate(key.upper()) is None
    assert access.authenticate(key + " ") is None


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Access:
    folder = tmp_path_factory.mktemp("workspace")
    database = Database(f"sqlite:///{folder / 'rows.db'}")
    database.upgrade()
    access = Access.open(database, load_settings(folder, token="the-token"))
    access.first_start()
    return access


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(token=st.text() | st.from_regex(r"octavo_[0-9a-f]{10}_[A-Za-z0-9_-]{43}", fullmatch=True))
def test_made_up_tokens_are_nobodys(empty: Access, token: str) -> None:
    assert empty.authenticate(token) is None
    assert empty.session(token) is None
    empty.logout(token)


def test_a_password_begins_a_session_and_logout_ends_it(access: Access, tmp_path: Path) -> None:
    access.add_user("ann", "long enough", "viewer")
    token = access.login("ann", "long enough")
    principal = access.session(token)
    assert principal is not None
    assert (principal.name, principal.kind) == ("ann", "user")
    assert reopened(access, tmp_path).session(token) == principal
    assert access.authenticate(token) is None  # a cookie is not a key
    access.logout(token)
    assert access.session(token) is None


def test_sessions_end_with_time_password_and_user(access: Access, clock: Clock) -> None:
    access.add_user("ann", "long enough")
    token = access.login("ann", "long enough")
    clock.pass_(hours=11.9)
    assert access.session(token)
    clock.pass_(hours=0.2)
    assert access.session(token) is None
    token = access.login("ann", "long enough")
    assert access.session(token)
    access.set_password("ann", "another one")
    assert access.session(token) is None
    token = access.login("ann", "another one")
    access.set_disabled("ann")
    assert access.session(token) is None
    with pytest.raises(Unauthenticated):
        access.login("ann", "another one")


def test_a_key_begins_a_session_that_ends_with_it(access: Access) -> None:
    access.add_user("ann", role="viewer")
    key = access.create_key("ann")
    token = access.login_with_token(key.secret)
    principal = access.session(token)
    assert principal is not None
    assert principal.name == "ann"
    access.revoke_key(key.prefix)
    assert access.session(token) is None
    with pytest.raises(Unauthenticated):
        access.login_with_token(key.secret)


def test_the_admin_token_begins_a_session_of_this_process(access: Access, tmp_path: Path, clock: Clock) -> None:
    fixed = reopened(access, tmp_path, token="correct-horse")
    token = fixed.login_with_token("correct-horse")
    principal = fixed.session(token)
    assert principal is not None
    assert allowed(principal, "admin", "x")
    fixed.add_user("ann")
    assert fixed.session(token) == principal
    assert reopened(access, tmp_path, token="correct-horse").session(token) is None
    clock.pass_(hours=13)
    assert fixed.session(token) is None


def test_wrong_logins_say_nothing_of_the_name(access: Access) -> None:
    access.add_user("ann", "long enough")
    access.add_user("bot")
    told = set()
    for name, password in [
        ("ann", "wrong"),
        ("nobody", "wrong"),
        ("bot", ""),
        ("a\0b", "x"),
        ("x" * 10_000, "y" * 10**6),
    ]:
        with pytest.raises(Unauthenticated) as caught:
            access.login(name, password)
        told.add(str(caught.value))
    assert len(told) == 1


def test_guessing_is_slowed_per_name(access: Access) -> None:
    access.add_user("ann", "long enough")
    access.add_user("bob", "long enough")
    for _ in range(5):
        with pytest.raises(Unauthenticated):
            access.login("ann", "wrong")
    with pytest.raises(Busy) as caught:
        access.login("ann", "long enough")
    assert 0 < caught.value.retry_after <= 60
    access.login("bob", "long enough")


def test_the_limit_opens_again_and_is_bounded() -> None:
    time = [0.0]
    limit = GuessLimit(most=2, window=60, names=3, clock=lambda: time[0])
    limit.attempt("ann")
    time[0] = 30
    limit.attempt("ann")
    with pytest.raises(Busy) as caught:
        limit.attempt("ann")
    assert caught.value.retry_after == 30
    time[0] = 60
    limit.attempt("ann")
    with pytest.raises(Busy):
        limit.attempt("ann")
    limit.succeeded("ann")
    limit.attempt("ann")
    for number in range(100):
        limit.attempt(f"name{number}")
    assert len(limit._tries) == 3


def test_memory_forgets_in_time_and_is_bounded(clock: Clock) -> None:
    time = [0.0]
    memory = PrincipalMemory(ttl=10, most=3, clock=lambda: time[0])
    ann = Principal("ann", "key")
    now = clock()
    memory.keep("fixed", ANONYMOUS)
    memory.remember("a", ann, None, now, memory.generation)
    assert memory.find("a") == ann
    time[0] = 10.5
    assert memory.find("a") is None
    for number in range(10):
        memory.remember(str(number), ann, None, now, memory.generation)
    assert [str(number) for number in range(10) if memory.find(str(number))] == ["7", "8", "9"]
    assert memory.find("fixed") == ANONYMOUS


def test_what_was_read_before_a_change_is_not_remembered_after_it(clock: Clock) -> None:
    memory = PrincipalMemory()
    generation = memory.generation
    memory.forget()
    memory.remember("a", Principal("ann", "key"), None, clock(), generation)
    memory.remember_session("s", Principal("ann", "user"), clock(), generation)
    assert memory.find("a") is None
    assert memory.find_session("s", clock()) is None
