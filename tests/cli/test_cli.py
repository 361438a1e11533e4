"""The command line as people and scripts see it: exit codes, the two streams, `--json`."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from octavo import __version__
from octavo.settings import load_settings
from octavo.web.workspace import default_file

ERROR_OF_INPUT, NOT_RUNNING = 2, 3


def octavo(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OCTAVO_")}
    return subprocess.run(
        [sys.executable, "-m", "octavo.cli", *words],
        capture_output=True, text=True, timeout=60, env=clean | {"NO_COLOR": "1"} | environment,
    )  # fmt: skip


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    for part in parts:
        assert part in done.stderr


def test_version_and_help() -> None:
    assert octavo("--version").stdout == f"octavo {__version__}\n"
    shown = octavo("--help")
    assert shown.returncode == 0
    for command in ("init", "up", "status", "users", "models", "bench"):
        assert f"\n  {command} " in shown.stdout


@pytest.mark.parametrize("command", ["init", "up", "status", "users", "models", "bench", "jobs"])
def test_every_command_explains_itself(command: str) -> None:
    shown = octavo(command, "--help")
    assert shown.returncode == 0, shown.stderr
    assert "Usage:" in shown.stdout


def test_help_imports_no_wing_and_nothing_heavy() -> None:
    code = (
        "import sys; from octavo.cli import run; run(['--help']); "
        "print(sorted(m for m in sys.modules if m.split('.')[0] in "
        "{'numpy', 'fastapi', 'sqlalchemy', 'nicegui', 'pydantic', 'onnxruntime', 'rich', 'dbos', 'httpx'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]"


def test_unknown_commands_and_options_are_errors_of_input() -> None:
    assert octavo("statsu").returncode == ERROR_OF_INPUT
    assert "status" in octavo("statu").stderr
    assert octavo("status", "--no-such").returncode == ERROR_OF_INPUT
    problem = json.loads(octavo("status", "--json", "--no-such").stderr)
    assert "--no-such" in problem["detail"]


def test_init_takes_the_folder_as_every_command_does(tmp_path: Path) -> None:
    assert octavo("init", "--workspace", str(tmp_path / "a")).returncode == 0
    assert octavo("init", OCTAVO_WORKSPACE=str(tmp_path / "b")).returncode == 0
    assert (tmp_path / "a/octavo.toml").is_file()
    assert (tmp_path / "b/octavo.toml").is_file()
    assert_one_line(octavo("init"), ERROR_OF_INPUT, "octavo init DIR")


@pytest.mark.parametrize("words", [["status"], ["jobs", "ls"], ["users", "ls"]])
def test_a_mistyped_workspace_is_said_and_not_made(tmp_path: Path, words: list[str]) -> None:
    assert_one_line(octavo(*words, "--workspace", str(tmp_path / "typo")), ERROR_OF_INPUT, "octavo init DIR")
    assert list(tmp_path.iterdir()) == []


def test_jobs_know_their_kinds(tmp_path: Path) -> None:
    octavo("init", str(tmp_path / "w"))
    where = ("--workspace", str(tmp_path / "w"))
    assert_one_line(octavo("jobs", "submit", "no.such", *where), ERROR_OF_INPUT, "models.add")
    assert_one_line(octavo("jobs", "submit", "models.add", "nome=x", *where), ERROR_OF_INPUT, "'name'")
    assert_one_line(octavo("jobs", "schedule", "nightly", "0 3 * * *", "no.such", *where), ERROR_OF_INPUT, "models.add")
    assert json.loads(octavo("jobs", "ls", "--json", *where).stdout)["jobs"] == []


def test_init_makes_a_workspace_once(tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    done = octavo("init", str(folder))
    assert done.returncode == 0
    assert f"octavo up --workspace '{folder}'" in done.stdout
    assert (folder / "models").is_dir()
    assert stat.S_IMODE((folder / "run").stat().st_mode) == 0o700
    assert load_settings(folder).web.port == 8600
    assert_one_line(octavo("init", str(folder)), ERROR_OF_INPUT, str(folder))
    told = json.loads(octavo("init", str(tmp_path / "c"), "--json").stdout)
    assert told["workspace"] == str(tmp_path / "c")


def test_the_made_file_holds_every_default_and_valid_ones(tmp_path: Path) -> None:
    text = "\n".join(
        line[1:] if line.startswith("#") and line[1:2] != " " else line for line in default_file().splitlines()
    )
    (tmp_path / "octavo.toml").write_text(text)
    for section in ("web", "storage", "jobs", "serving"):
        defaults, read = load_settings(tmp_path / "none"), load_settings(tmp_path)
        assert getattr(read, section) == getattr(defaults, section)


def test_init_in_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_one_line(octavo("init", str(tmp_path / "file" / "x")), ERROR_OF_INPUT, "cannot be made")


def test_status_without_a_server(tmp_path: Path) -> None:
    done = octavo("status", "--workspace", str(tmp_path))
    assert done.returncode == NOT_RUNNING
    assert "No server" in done.stdout
    as_json = octavo("status", "--json", OCTAVO_WORKSPACE=str(tmp_path))
    assert as_json.returncode == NOT_RUNNING
    assert json.loads(as_json.stdout) == {"running": False, "workspace": str(tmp_path)}


@pytest.mark.parametrize("leftover", ["", "nonsense", '{"url": "http://127.0.0.1:1", "pid": 1, "token": "t"}', "[]"])
def test_what_a_killed_server_left_is_not_a_server(tmp_path: Path, leftover: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "server.json").write_text(leftover)
    (tmp_path / "run" / "server.lock").write_text("1")
    assert octavo("status", "--workspace", str(tmp_path)).returncode == NOT_RUNNING


def test_an_unknown_setting_is_named_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "octavo.toml").write_text("[web]\nprot = 1\n")
    assert_one_line(
        octavo("status", "--workspace", str(tmp_path)), ERROR_OF_INPUT, "web.prot", str(tmp_path / "octavo.toml")
    )
    problem = json.loads(octavo("status", "--json", "--workspace", str(tmp_path)).stderr)
    assert problem["status"] == 400


@pytest.mark.parametrize("text", ["[web\n", "web = 3\n", "[web]\nport = 'x'\n", "[web]\nport = 99999\n", "\x00"])
def test_a_broken_settings_file_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "octavo.toml").write_text(text)
    assert_one_line(octavo("up", "--workspace", str(tmp_path)), ERROR_OF_INPUT, str(tmp_path / "octavo.toml"))


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = str(holder.getsockname()[1])
        done = octavo("up", "--port", port, "--workspace", str(tmp_path))
        assert_one_line(done, ERROR_OF_INPUT, port, "--port")
        problem = json.loads(octavo("up", "--json", "--port", port, "--workspace", str(tmp_path)).stderr)
        assert problem["status"] == 409


def test_an_address_that_is_not_here(tmp_path: Path) -> None:
    for host in ("no-such-host.invalid", "192.0.2.1"):
        assert_one_line(octavo("up", "--host", host, "--workspace", str(tmp_path)), ERROR_OF_INPUT, host)


def test_a_workspace_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_one_line(octavo("up", "--workspace", str(tmp_path / "file")), ERROR_OF_INPUT, "file")


def test_a_database_that_is_not_there(tmp_path: Path) -> None:
    done = octavo("up", "--port", "0", "--workspace", str(tmp_path), OCTAVO_STORAGE__DATABASE="nonsense://x")
    assert_one_line(done, ERROR_OF_INPUT, "storage.database")


def test_what_nobody_expected_is_one_line_without_and_all_with_debug(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import octavo.settings\ndef broken(*a, **k): raise ZeroDivisionError('boom')\n"
        "octavo.settings.load_settings = broken\n"
    )
    done = octavo("status", PYTHONPATH=str(tmp_path))
    assert_one_line(done, 1, "boom", "OCTAVO_DEBUG=1")
    assert "Traceback" in octavo("status", PYTHONPATH=str(tmp_path), OCTAVO_DEBUG="1").stderr


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    code = "import sys, octavo.cli as cli; cli.find_spec = lambda name: None; sys.exit(cli.run(['models', 'ls']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == ERROR_OF_INPUT
    assert "pip install 'octavo[serving]'" in done.stderr


def test_a_reader_that_leaves_is_not_worth_a_word(tmp_path: Path) -> None:
    command = f"{sys.executable} -m octavo.cli init {tmp_path}/x --json | true"
    done = subprocess.run(command, shell=True, executable="/bin/bash", capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
