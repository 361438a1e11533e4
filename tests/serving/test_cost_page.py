"""The console's page of costs, in Chromium."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.serving.client import Client

from .browsing import NARROW, WIDE, guest, window
from .live import Up, octavo_up
from .served_models import publish_tiny_models

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, session_folder: Path) -> Iterator[Up]:
    workspace = tmp_path_factory.mktemp("costs") / "workspace"
    publish_tiny_models(workspace / "models")
    with octavo_up(workspace, OCTAVO_SERVING__CACHE=str(session_folder / "cache")) as up:
        yield up


@pytest.fixture(scope="module")
def tokens(server: Up) -> dict[str, str]:
    """Two tenants who have asked."""
    found = {name: guest(server, name, "viewer", "models/*") for name in ("acme", "globex")}
    for name, token in found.items():
        with Client(server.url, token=token) as client:
            for model in ("double", "triple"):
                for _ in range(5 if name == "acme" else 2):
                    client.infer(model, {"x": np.ones((1, 4), np.float32)})
    return found


def lines(page: Any) -> list[list[str]]:
    """The table's cells, once it has some."""
    page.locator(".q-table tbody tr").first.wait_for()
    return [row.locator("td").all_inner_texts() for row in page.locator(".q-table tbody tr").all()]


def choose(page: Any, field: str, option: str) -> None:
    page.get_by_role("combobox", name=field).click()
    page.locator(".q-menu .q-item").get_by_text(option, exact=True).click()


def test_without_usage_the_next_step_is_told(browser: Any, server: Up) -> None:
    with window(browser, server, "/costs") as page:
        page.locator(".o-empty code", has_text="octavo costs").wait_for()
        assert not page.get_by_role("link", name="CSV").is_visible()


@pytest.mark.parametrize("form", [WIDE, NARROW], ids=["wide", "narrow"])
def test_a_line_for_each_and_as_csv(
    browser: Any, server: Up, tokens: dict[str, str], form: Any, tmp_path: Path
) -> None:
    with window(browser, server, "/costs", form) as page:
        asked = {(row[0], row[1]): row[5] for row in lines(page)}
        assert {who: count for who, count in asked.items() if who[0] != "(house)"} == {
            ("acme", "double"): "5", ("acme", "triple"): "5", ("globex", "double"): "2", ("globex", "triple"): "2",
        }  # fmt: skip
        choose(page, "A line for each", "Tenant")
        page.wait_for_function("[...document.querySelectorAll('.q-table th')].every(th => th.innerText !== 'Model')")
        assert {row[0]: row[4] for row in lines(page)}["acme"] == "10"
        page.get_by_label("Machine per hour").fill("a lot")
        page.locator("[role=alert]", has_text="not a price").wait_for()
        page.get_by_label("Machine per hour").fill("3600000")
        page.locator("[role=alert]").wait_for(state="detached")
        page.wait_for_function("document.querySelector('.o-figure-value').innerText.length > 6")
        assert page.locator("canvas").count() == 1
        with page.expect_download() as found:
            page.get_by_role("link", name="CSV").click()
        found.value.save_as(tmp_path / "costs.csv")
    with (tmp_path / "costs.csv").open() as file:
        rows = {row["tenant"]: row for row in csv.DictReader(file)}
    assert rows["acme"]["requests"] == "10"
    assert float(rows["(idle)"]["money"]) > 100


def test_a_tenant_sees_only_its_own_part(browser: Any, server: Up, tokens: dict[str, str]) -> None:
    with window(browser, server, "/costs", token=tokens["globex"]) as page:
        assert {row[0] for row in lines(page)} == {"globex"}
        assert page.get_by_text("of the machine idle").count() == 0
