from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.access import Grant
from octavo.access.accounts import _check_name
from octavo.access.service import Access
from octavo.errors import Conflict, Invalid, NotFound


def test_users_come_and_go(access: Access) -> None:
    access.add_user("bob")
    made = access.add_user("ann", "long enough", "editor")
    assert made == access.list_users()[0]
    assert [(user.name, user.has_password, user.disabled) for user in access.list_users()] == [
        ("ann", True, False),
        ("bob", False, False),
    ]
    assert made.grants == (Grant("editor", "*"),)
    access.set_disabled("bob")
    assert access.list_users()[1].disabled
    access.create_key("ann")
    access.login("ann", "long enough")
    access.remove_user("ann")
    assert [user.name for user in access.list_users()] == ["bob"]
    assert access.list_keys() == []


def test_a_name_is_had_once(access: Access) -> None:
    access.add_user("ann")
    access.add_group("team")
    with pytest.raises(Conflict):
        access.add_user("ann")
    with pytest.raises(Conflict):
        access.add_group("team")


def test_groups_hold_users_and_roles(access: Access) -> None:
    access.add_user("ann")
    access.add_group("team")
    access.join("team", "ann")
    access.join("team", "ann")
    access.grant("group:team", "viewer", "models/*")
    (group,) = access.list_groups()
    assert (group.name, group.users, group.grants) == ("team", ("ann",), (Grant("viewer", "models/*"),))
    assert access.list_users()[0].groups == ("team",)
    access.leave("team", "ann")
    access.leave("team", "ann")
    assert access.list_groups()[0].users == ()
    access.join("team", "ann")
    access.remove_group("team")
    assert access.list_groups() == []
    assert access.list_users()[0].groups == ()


def test_a_second_role_on_a_pattern_replaces_the_first(access: Access) -> None:
    access.add_user("ann")
    access.grant("ann", "viewer", "models/*")
    access.grant("ann", "editor", "models/*")
    access.grant("ann", "viewer", "jobs/*")
    assert access.list_users()[0].grants == (Grant("viewer", "jobs/*"), Grant("editor", "models/*"))
    access.revoke("ann", "models/*")
    assert access.list_users()[0].grants == (Grant("viewer", "jobs/*"),)
    with pytest.raises(NotFound) as caught:
        access.revoke("ann", "models/*")
    assert "jobs/*" in caught.value.fix


def test_the_last_admin_stays(access: Access) -> None:
    access.add_user("ann", role="admin")
    access.add_user("bob")
    access.add_group("chiefs")
    for change in (
        lambda: access.remove_user("ann"),
        lambda: access.set_disabled("ann"),
        lambda: access.revoke("ann"),
        lambda: access.grant("ann", "viewer"),
    ):
        with pytest.raises(Conflict, match="nobody would be admin"):
            change()
    access.grant("group:chiefs", "admin")
    access.join("chiefs", "bob")
    access.remove_user("ann")
    for change in (
        lambda: access.leave("chiefs", "bob"),
        lambda: access.remove_group("chiefs"),
        lambda: access.set_disabled("bob"),
    ):
        with pytest.raises(Conflict, match="nobody would be admin"):
            change()
    assert [user.name for user in access.list_users()] == ["bob"]


def test_keys_are_listed_without_their_secret(access: Access) -> None:
    access.add_user("ann")
    new = access.create_key("ann", "notebook", datetime.now(UTC) + timedelta(days=1))
    assert new.secret.startswith(f"octavo_{new.prefix}_")
    (key,) = access.list_keys("ann")
    assert (key.prefix, key.owner, key.label, key.revoked) == (new.prefix, "ann", "notebook", None)
    assert new.secret.removeprefix(f"octavo_{new.prefix}_") not in repr(key)
    access.revoke_key(new.prefix)
    first = access.list_keys()[0].revoked
    access.revoke_key(new.prefix)
    assert first is not None
    assert access.list_keys()[0].revoked == first


def test_nothing_secret_is_in_the_database(access: Access) -> None:
    from sqlalchemy import text

    access.add_user("ann", "the password")
    secrets = [access.create_key("ann").secret, access.login("ann", "the password"), "the password"]
    with access.database.session(read_only=True) as session:
        for table in ("access_users", "access_keys", "access_sessions"):
            kept = repr(session.execute(text(f"SELECT * FROM {table}")).all())
            for secret in secrets:
                assert secret not in kept
                assert secret[-12:] not in kept


def test_who_is_not_there_is_named(access: Access) -> None:
    for use in (
        lambda: access.remove_user("nobody"),
        lambda: access.set_password("nobody", "long enough"),
        lambda: access.set_disabled("nobody"),
        lambda: access.grant("nobody", "viewer"),
        lambda: access.create_key("nobody"),
        lambda: access.list_keys("nobody"),
    ):
        with pytest.raises(NotFound, match="nobody"):
            use()
    for use in (lambda: access.join("none", "x"), lambda: access.remove_group("none"), lambda: access.revoke_key("no")):
        with pytest.raises(NotFound):
            use()
    with pytest.raises(NotFound):
        access.grant("group:none", "viewer")


@pytest.mark.parametrize("name", ["", "Ann", "a b", "-a", "a/b", "../x", "a\0", "a\n", "x" * 65, "group:x", "é"])
def test_wrong_names_are_refused(access: Access, name: str) -> None:
    with pytest.raises(Invalid):
        access.add_user(name)
    with pytest.raises(Invalid):
        access.add_group(name)
    with pytest.raises(NotFound):
        access.remove_user(name)


def test_wrong_passwords_labels_and_dates_are_refused(access: Access) -> None:
    access.add_user("ann")
    for password in ("short", "", "x" * 1025):
        with pytest.raises(Invalid):
            access.set_password("ann", password)
    for label in ("a\nb", "x" * 201, "\x1b[31m"):
        with pytest.raises(Invalid):
            access.create_key("ann", label)
    for expires in (datetime.now(UTC) - timedelta(days=1), datetime(2099, 1, 1)):
        with pytest.raises(Invalid):
            access.create_key("ann", expires=expires)
    assert access.list_keys() == []


@given(st.text(max_size=70))
def test_an_accepted_name_is_plain(name: str) -> None:
    try:
        _check_name(name)
    except Invalid:
        return
    assert name.isascii()
    assert name == name.lower()
    assert 1 <= len(name) <= 64
    assert not set(name) & set("/:* \n\\")
