"""The console's page of autoscaling, in Chromium."""

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

TRACE = "t_s,tenant,model_kind,n_tokens\n" + "".join(
    f"{at / 10},t{at % 7},classifier,12\n" for at in range(10 * 60 * 10)
)
"""Ten minutes of ten requests a second to seven models: 600 a minute, so three instances."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, session_folder: Path) -> Iterator[Up]:
    workspace = tmp_path_factory.mktemp("autoscaling") / "workspace"
    publish_tiny_models(workspace / "models")
    with octavo_up(workspace, OCTAVO_SERVING__CACHE=str(session_folder / "cache")) as up:
        yield up


def send(page: Any, content: str) -> None:
    page.set_input_files("input[type=file]", {"name": "day.csv", "mimeType": "text/csv", "buffer": content.encode()})
    page.get_by_text("day.csv, ").wait_for()


def simulate(page: Any) -> None:
    page.get_by_role("button", name="Simulate").click()


@pytest.mark.parametrize("form", [WIDE, NARROW], ids=["wide", "narrow"])
def test_a_trace_is_replayed_and_taken_along(browser: Any, server: Up, form: Any, tmp_path: Path) -> None:
    with window(browser, server, "/autoscaling", form) as page:
        send(page, TRACE)
        page.get_by_label("Price per hour").fill("6")
        simulate(page)
        page.get_by_text("3 at the peak").wait_for(timeout=60_000)
        assert page.locator("canvas").count() == 4
        assert "1 → 3" in page.locator(".o-log li").first.inner_text()
        for name in ("CSV", "PNG"):
            with page.expect_download() as found:
                page.get_by_role("button", name=name, exact=True).click()
            found.value.save_as(tmp_path / found.value.suggested_filename)
        page.get_by_label("Most instances").fill("1")
        simulate(page)
        page.get_by_text("1 at the peak").wait_for(timeout=60_000)
        page.get_by_text("The fleet never changed.").wait_for()
    assert (tmp_path / "autoscaling.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "autoscaling.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["instances"] for row in (rows[0], rows[-1])] == ["1", "3"]
    assert sum(float(row["cost"]) for row in rows) > 1


def test_what_is_wrong_is_told_where_it_is(browser: Any, server: Up) -> None:
    with window(browser, server, "/autoscaling") as page:
        simulate(page)
        page.locator("[role=alert]", has_text="no trace is chosen").wait_for()
        send(page, "t_s,tenant,model_kind,n_tokens\n1,a,b,3\n0,a,b,3\n")
        simulate(page)
        page.locator("[role=alert]", has_text="day.csv, line 3").wait_for(timeout=60_000)
        page.get_by_label("Memory target %").fill("120")
        simulate(page)
        page.locator(".q-field--error", has_text="less than or equal to 100").wait_for()
        page.get_by_label("Memory target %").fill("80")
        page.get_by_label("MiB per model").fill("")
        simulate(page)
        page.locator(".q-field--error", has_text="Fill this in").wait_for()


def test_recorded_usage_is_for_admins(browser: Any, server: Up) -> None:
    with window(browser, server, "/autoscaling") as page:
        page.get_by_role("button", name="Recorded usage").click()
        simulate(page)
        page.locator("[role=alert]", has_text="nothing was asked").wait_for()
        with Client(server.url, token=server.token) as client:
            for _ in range(3):
                client.infer("double", {"x": np.ones((1, 4), np.float32)})
        simulate(page)
        page.get_by_text("of 3 requests").wait_for(timeout=60_000)
    with window(browser, server, "/autoscaling", token=guest(server, "ann", "viewer", "models/double")) as page:
        page.get_by_role("button", name="Simulate").wait_for()
        assert not page.get_by_role("button", name="Recorded usage").is_visible()
