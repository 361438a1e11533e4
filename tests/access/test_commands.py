from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from octavo.access.commands import app
from octavo.access.service import Access
from octavo.errors import Conflict, Invalid, NotFound
from octavo.settings import load_settings
from octavo.storage import Database

runner = CliRunner()


@pytest.fixture
def workspace(tmp_path: Path, database_url: str) -> Path:
    """A workspace whose rows are in SQLite or PostgreSQL."""
    folder = tmp_path / "workspace"
    folder.mkdir()
    (folder / "octavo.toml").write_text(f'[storage]\ndatabase = "{database_url}"\n')
    return folder


def run(workspace: Path, *words: str, stdin: str = "") -> str:
    result = runner.invoke(app, [*words, "--workspace", str(workspace)], input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


def asked(workspace: Path, *words: str, stdin: str = "") -> Any:
    return json.loads(run(workspace, *words, "--json", stdin=stdin))


def test_an_account_from_beginning_to_end(workspace: Path) -> None:
    assert asked(workspace, "add", "ann", "--role", "viewer", "--password-stdin", stdin="long enough\n")["has_password"]
    asked(workspace, "group-add", "team")
    asked(workspace, "join", "team", "ann")
    asked(workspace, "grant", "group:team", "editor", "--on", "models/*")
    listed = asked(workspace, "ls")
    assert listed["users"][0]["groups"] == ["team"]
    assert listed["groups"][0]["grants"] == [{"role": "editor", "pattern": "models/*"}]
    assert "editor on models/*" in run(workspace, "ls")
    asked(workspace, "passwd", "ann", "--password-stdin", stdin="another one\n")
    asked(workspace, "disable", "ann")
    assert asked(workspace, "ls")["users"][0]["disabled"]
    asked(workspace, "enable", "ann")
    database = Database(load_settings(workspace).database_url)
    assert Access.open(database, load_settings(workspace)).login("ann", "another one")
    database.close()
    asked(workspace, "revoke", "group:team", "--on", "models/*")
    asked(workspace, "leave", "team", "ann")
    asked(workspace, "group-rm", "team")
    assert asked(workspace, "rm", "ann") == {"removed": "ann"}
    assert asked(workspace, "ls") == {"users": [], "groups": []}


def test_a_key_is_shown_once_and_ends(workspace: Path) -> None:
    run(workspace, "add", "ann")
    secret = run(workspace, "key-add", "ann", "--label", "notebook", "--days", "3").strip()
    (key,) = asked(workspace, "keys")["keys"]
    assert secret.startswith(f"octavo_{key['prefix']}_")
    assert (key["label"], key["revoked"]) == ("notebook", None)
    assert key["prefix"] in run(workspace, "keys", "ann")
    pair = asked(workspace, "aws-credentials", key["prefix"])
    assert asked(workspace, "aws-credentials", f"octavo_{key['prefix']}") == pair
    assert asked(workspace, "aws-credentials", secret) == pair
    asked(workspace, "key-revoke", f"octavo_{key['prefix']}")
    assert asked(workspace, "keys", "ann")["keys"][0]["revoked"]


def test_the_workspace_may_come_from_the_environment(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_WORKSPACE", str(workspace))
    assert runner.invoke(app, ["add", "ann"]).exit_code == 0
    assert [user["name"] for user in asked(workspace, "ls")["users"]] == ["ann"]


def test_wrong_input_is_an_error_with_a_reader(workspace: Path) -> None:
    run(workspace, "add", "ann")
    with pytest.raises(Conflict):
        run(workspace, "add", "ann")
    with pytest.raises(Invalid):
        run(workspace, "add", "Not A Name")
    with pytest.raises(Invalid):
        run(workspace, "grant", "ann", "owner")
    with pytest.raises(NotFound):
        run(workspace, "rm", "bob")
    with pytest.raises(Invalid):
        run(workspace, "passwd", "ann", "--password-stdin", stdin="short\n")


def test_help_loads_no_database() -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from octavo.access.commands import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "print([name for name in ('sqlalchemy', 'pydantic', 'argon2') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
