from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import Invalid
from octavo.settings import load_settings, parse_bytes


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("OCTAVO_")]:
        monkeypatch.delenv(name)


def write(folder: Path, content: str) -> None:
    (folder / "octavo.toml").write_text(content, encoding="utf-8")


def test_defaults_need_no_file(tmp_path: Path) -> None:
    settings = load_settings(tmp_path / "not-there")
    assert settings.workspace == tmp_path / "not-there"
    assert settings.database_url == f"sqlite:///{tmp_path / 'not-there' / 'octavo.db'}"
    assert settings.objects_url == str(tmp_path / "not-there" / "objects")
    assert not (tmp_path / "not-there").exists()


def test_flags_beat_environment_beats_file_beats_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings(tmp_path).web.port == 8600
    write(tmp_path, "[web]\nport = 1001\nhost = '0.0.0.0'\n")
    assert load_settings(tmp_path).web.port == 1001
    monkeypatch.setenv("OCTAVO_WEB__PORT", "1002")
    assert load_settings(tmp_path).web.port == 1002
    settings = load_settings(tmp_path, web={"port": 1003})
    assert (settings.web.port, settings.web.host) == (1003, "0.0.0.0")
    assert load_settings(tmp_path, web={"port": None}).web.port == 1002


def test_the_workspace_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTAVO_WORKSPACE", str(tmp_path / "other"))
    assert load_settings().workspace == tmp_path / "other"
    assert load_settings(tmp_path).workspace == tmp_path


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("[web]\nport = 'many'\n", "web.port"),
        ("[web]\nport = 70000\n", "web.port"),
        ("[web]\nprot = 1\n", "web.prot"),
        ("colour = 'red'\n", "colour"),
        ("[serving]\nmemory_budget = '2 GiBberish'\n", "serving.memory_budget"),
        ("log_level = 'loud'\n", "log_level"),
    ],
)
def test_a_wrong_value_names_its_key_and_file(tmp_path: Path, content: str, named: str) -> None:
    write(tmp_path, content)
    with pytest.raises(Invalid) as caught:
        load_settings(tmp_path)
    assert named in caught.value.what
    assert caught.value.where == str(tmp_path / "octavo.toml")


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("OCTAVO_WEB__PORT", "many", "web.port"),
        ("OCTAVO_SERVING__FROB", "1", "unknown setting serving.frob"),
        ("OCTAVO_SERVING__MEMORY_BUDGET", "lots", "2GiB"),
        ("OCTAVO_WEB__ALLOWED_HOSTS", "octavo.example.org", "JSON"),
    ],
)
def test_a_wrong_value_in_the_environment_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, told: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(Invalid) as caught:
        load_settings(tmp_path)
    assert told in caught.value.what
    assert variable in caught.value.where


def test_the_current_folder_is_the_workspace_when_it_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings().workspace != tmp_path
    write(tmp_path, "[web]\nport = 1002\n")
    assert (load_settings().workspace, load_settings().web.port) == (tmp_path, 1002)
    monkeypatch.setenv("OCTAVO_WORKSPACE", str(tmp_path / "other"))
    assert load_settings().workspace == tmp_path / "other"


def test_code_runs_only_from_a_workspace_that_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "[serving]\nallow_code = true\n")
    assert not load_settings().serving.allow_code
    assert f"--workspace {tmp_path}" in caplog.text
    assert load_settings(tmp_path).serving.allow_code
    monkeypatch.setenv("OCTAVO_WORKSPACE", str(tmp_path))
    assert load_settings().serving.allow_code
    monkeypatch.delenv("OCTAVO_WORKSPACE")
    monkeypatch.setenv("OCTAVO_SERVING__ALLOW_CODE", "true")
    assert load_settings().serving.allow_code


@pytest.mark.parametrize("content", [b"port = = 1", b"\xff\xfe\x00", b"[web\n"])
def test_a_broken_file_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "octavo.toml").write_bytes(content)
    with pytest.raises(Invalid, match="TOML"):
        load_settings(tmp_path)


def test_wrong_flags_are_told(tmp_path: Path) -> None:
    with pytest.raises(Invalid):
        load_settings(tmp_path, colour="red")
    with pytest.raises(Invalid):
        load_settings(tmp_path, web={"port": 70000})
    with pytest.raises(Invalid):
        load_settings(tmp_path, log_level="loud")


def test_a_token_is_not_printed(tmp_path: Path) -> None:
    settings = load_settings(tmp_path, token="correct-horse")
    assert settings.token.get_secret_value() == "correct-horse"
    assert "correct-horse" not in repr(settings)
    assert "correct-horse" not in settings.model_dump_json()


@pytest.mark.parametrize(
    ("text", "number"), [("2GiB", 2**31), ("500 MB", 5 * 10**8), ("1.5KiB", 1536), ("7", 7), ("3b", 3), (9, 9)]
)
def test_sizes(text: object, number: int) -> None:
    assert parse_bytes(text) == number


@given(st.integers(0, 2**50), st.sampled_from(["", "B", "KiB", "mb", "GIB"]))
def test_sizes_grow_with_their_number(number: int, unit: str) -> None:
    assert parse_bytes(f"{number + 1}{unit}") >= parse_bytes(f"{number}{unit}") >= number  # type: ignore[operator]


def test_a_wrong_flag_names_its_key(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"web\.port"):
        load_settings(tmp_path, web={"port": "many"})


def test_flags_leave_no_trace_in_later_settings(tmp_path: Path) -> None:
    assert load_settings(tmp_path, web={"port": 1}, log_level="debug").log_level == "debug"
    assert (load_settings(tmp_path).web.port, load_settings(tmp_path).log_level) == (8600, "info")
