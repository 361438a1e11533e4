"""Wings whose extra is missing: the server runs without them and says what would add them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from octavo.errors import Unavailable
from octavo.settings import load_settings
from octavo.web import dashboard, health, shell, wings
from octavo.web.health import status_of
from octavo.web.house import House

COMMAND = "pip install 'octavo[serving]'"


@pytest.fixture
async def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[House]:
    """Everything a server has open when serving's extra is not installed."""

    def find_some(name: str) -> Any:
        return None if name == "onnxruntime" else find_spec(name)

    monkeypatch.setattr(wings, "find_spec", find_some)
    opened = await House.open(load_settings(tmp_path))
    yield opened
    await opened.close()


async def test_the_house_opens_without_the_wing_and_its_jobs(house: House) -> None:
    assert house.services == {}
    assert house.installed() == []
    assert house.jobs is not None
    assert house.jobs.modules == ()


async def test_its_entry_in_the_navigation_is_greyed_and_names_the_command(house: House) -> None:
    entries = {entry.title: entry for entry in shell.Shell(house).entries}
    assert list(entries) == ["Overview", "Models", "Jobs"]
    assert [entry.command for entry in entries.values()] == ["", COMMAND, ""]
    drawn = shell._line(entries["Models"], "/models")
    assert "o-nav-missing" in drawn
    assert "<code>pip install &#x27;octavo[serving]&#x27;</code>" in drawn
    assert "href" not in drawn


def test_a_system_that_cannot_tell_its_figure_does_not_hide_the_others() -> None:
    def fail(service: object) -> object:
        raise Unavailable("the model repository cannot be read", "/gone", "Bring it back.")

    broken = replace(wings.WINGS[0], figure=fail)  # type: ignore[arg-type]
    entry = health._figure(broken, object())
    assert entry["figure"] == "?"
    assert "cannot be read" in str(entry["caption"])


async def test_the_overview_and_the_status_name_the_command(house: House) -> None:
    status = status_of(house)
    assert status["wings"] == [{"name": "serving", "title": "Models", "installed": False, "command": COMMAND}]
    drawn = dashboard.draw(status)
    assert "not installed" in drawn
    assert "<code>pip install &#x27;octavo[serving]&#x27;</code>" in drawn
    assert 'href="/models"' not in drawn
