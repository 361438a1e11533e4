"""`octavo users`: accounts, roles and keys, straight in the workspace's database; no server is needed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.access.tokens import named_prefix
from octavo.printing import print_json, print_table, say

if TYPE_CHECKING:
    from octavo.access.service import Access

app = typer.Typer(name="users", help="Users, groups, roles and API keys of a workspace.", no_args_is_help=True)

Workspace = Annotated[
    Path | None,
    typer.Option("--workspace", "-w", envvar="OCTAVO_WORKSPACE", help="The folder worked in.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")]
Name = Annotated[str, typer.Argument(help="The user's name.")]
Holder = Annotated[str, typer.Argument(help="A user's name, or group:NAME.")]
Key = Annotated[str, typer.Argument(help="The key's prefix, as `keys` lists it or with octavo_ before it.")]
Pattern = Annotated[str, typer.Option("--on", help="Resources, such as '*', 'models/*', 'models/acme-*'.")]
FromStdin = Annotated[bool, typer.Option("--password-stdin", help="Read the password from standard input.")]


@app.command("ls")
def list_all(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """List users and groups with their roles."""
    with _access(workspace) as access:
        users, groups = access.list_users(), access.list_groups()
    if as_json:
        print_json({"users": [asdict(user) for user in users], "groups": [asdict(group) for group in groups]})
        return
    print_table(
        ["user", "roles", "groups", "password", "state"],
        [
            (user.name, _roles(user.grants), ", ".join(user.groups), "yes" if user.has_password else "no",
             "disabled" if user.disabled else "active")
            for user in users
        ],
    )  # fmt: skip
    if groups:
        rows = [(group.name, _roles(group.grants), ", ".join(group.users)) for group in groups]
        print_table(["group", "roles", "users"], rows)


@app.command()
def add(
    name: Name,
    role: Annotated[str, typer.Option(help="viewer, editor or admin, on everything.", show_default=False)] = "",
    password: Annotated[bool, typer.Option("--password", help="Ask for a password.")] = False,
    password_stdin: FromStdin = False,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Add a user; without a password it signs in by key only."""
    secret = _ask_password(password_stdin) if password or password_stdin else None
    with _access(workspace) as access:
        user = access.add_user(name, secret, role or None)
    say(as_json, asdict(user), f"Added {name}.")


@app.command()
def rm(name: Name, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Remove a user with keys and sessions."""
    with _access(workspace) as access:
        access.remove_user(name)
    say(as_json, {"removed": name}, f"Removed {name}.")


@app.command()
def disable(name: Name, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Shut a user out, keeping the account."""
    with _access(workspace) as access:
        access.set_disabled(name)
    say(as_json, {"name": name, "disabled": True}, f"Disabled {name}.")


@app.command()
def enable(name: Name, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Let a disabled user in again."""
    with _access(workspace) as access:
        access.set_disabled(name, False)
    say(as_json, {"name": name, "disabled": False}, f"Enabled {name}.")


@app.command()
def passwd(name: Name, password_stdin: FromStdin = False, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Set a user's password; console sessions end."""
    secret = _ask_password(password_stdin)
    with _access(workspace) as access:
        access.set_password(name, secret)
    say(as_json, {"name": name}, f"Set the password of {name}.")


@app.command()
def grant(
    holder: Holder,
    role: Annotated[str, typer.Argument(help="viewer, editor or admin.")],
    on: Pattern = "*",
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Give a user or a group a role on resources."""
    with _access(workspace) as access:
        access.grant(holder, role, on)
    say(as_json, {"holder": holder, "role": role, "pattern": on}, f"{holder} is {role} on {on}.")


@app.command()
def revoke(holder: Holder, on: Pattern = "*", workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Take a role on resources away."""
    with _access(workspace) as access:
        access.revoke(holder, on)
    say(as_json, {"holder": holder, "pattern": on}, f"{holder} has no role on {on} any more.")


@app.command("group-add")
def group_add(name: str, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Add a group."""
    with _access(workspace) as access:
        access.add_group(name)
    say(as_json, {"group": name}, f"Added group {name}.")


@app.command("group-rm")
def group_rm(name: str, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Remove a group; its users stay."""
    with _access(workspace) as access:
        access.remove_group(name)
    say(as_json, {"removed": name}, f"Removed group {name}.")


@app.command()
def join(group: str, name: Name, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Put a user into a group."""
    with _access(workspace) as access:
        access.join(group, name)
    say(as_json, {"group": group, "user": name}, f"{name} is in {group}.")


@app.command()
def leave(group: str, name: Name, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Take a user out of a group."""
    with _access(workspace) as access:
        access.leave(group, name)
    say(as_json, {"group": group, "user": name}, f"{name} is not in {group}.")


@app.command()
def keys(
    name: Annotated[str, typer.Argument(help="Whose keys; all when not given.", show_default=False)] = "",
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """List API keys; their secrets are not kept."""
    with _access(workspace) as access:
        found = access.list_keys(name)
    if as_json:
        print_json({"keys": [asdict(key) for key in found]})
        return
    rows = [
        (key.prefix, key.owner, key.label, _day(key.created), _day(key.expires), _day(key.last_used), _day(key.revoked))
        for key in found
    ]
    print_table(["key", "owner", "label", "created", "expires", "last used", "revoked"], rows)


@app.command("key-add")
def key_add(
    name: Name,
    label: Annotated[str, typer.Option(help="What it is for.")] = "",
    days: Annotated[int, typer.Option(min=0, max=36_500, help="Days it is valid; 0 means for ever.")] = 0,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key and show it, this once."""
    expires = datetime.now(UTC) + timedelta(days=days) if days else None
    with _access(workspace) as access:
        key = access.create_key(name, label, expires)
        aws = access.aws_credentials(key.prefix)
    if as_json:
        print_json(asdict(key) | {"aws": asdict(aws)})
    else:
        typer.echo(key.secret)
        typer.echo("Keep it: it is not shown again.", err=True)
        typer.echo(f"For AWS's clients: octavo users aws-credentials {key.prefix}", err=True)


@app.command("aws-credentials")
def aws_credentials(
    key: Key,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Show what AWS's clients sign with in place of an API key, as lines of their credentials file."""
    with _access(workspace) as access:
        found = access.aws_credentials(named_prefix(key))
    lines = f"aws_access_key_id = {found.access_key_id}\naws_secret_access_key = {found.secret_access_key}"
    say(as_json, asdict(found), lines)


@app.command("key-revoke")
def key_revoke(
    key: Key,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """End an API key; a running server stops taking it within 10 seconds."""
    prefix = named_prefix(key)
    with _access(workspace) as access:
        access.revoke_key(prefix)
    say(as_json, {"revoked": prefix}, f"Revoked {prefix}.")


@contextmanager
def _access(workspace: Path | None) -> Iterator[Access]:
    from octavo.access.service import Access
    from octavo.settings import existing_workspace
    from octavo.storage.database import Database

    settings = existing_workspace(workspace)
    database = Database(settings.database_url)
    try:
        database.upgrade()
        yield Access.open(database, settings)
    finally:
        database.close()


def _ask_password(from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\n")
    return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))


def _roles(grants: Sequence[Any]) -> str:
    return ", ".join(f"{grant.role} on {grant.pattern}" for grant in grants)


def _day(time: datetime | None) -> str:
    return time.strftime("%Y-%m-%d") if time else ""
