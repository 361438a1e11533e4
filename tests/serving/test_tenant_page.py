"""The console's page of tenants, in Chromium, on a server with the real embedding model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .browsing import NARROW, guest, window
from .live import Up, octavo_up
from .served_models import link_models

pytestmark = pytest.mark.browser

ROWS = "text,category\nI lost my card,card\nmy card was stolen,card\nsend money,transfer\nwire money,transfer\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, session_folder: Path, minilm_models: Path) -> Iterator[Up]:
    workspace = tmp_path_factory.mktemp("tenants") / "workspace"
    link_models(minilm_models, workspace / "models")
    settings = {"CACHE": str(session_folder / "cache"), "WATCH_SECONDS": "0.2", "MAX_EXAMPLES": "100"}
    with octavo_up(workspace, **{f"OCTAVO_SERVING__{name}": value for name, value in settings.items()}) as up:
        yield up


def send(page: Any, name: str, content: str) -> None:
    page.set_input_files("input[type=file]", {"name": name, "mimeType": "text/csv", "buffer": content.encode()})


def test_train_and_try(browser: Any, server: Up) -> None:
    with window(browser, server, "/tenants") as page:
        page.locator(".o-empty code", has_text="octavo tenants train").wait_for()
        train = page.get_by_role("button", name="Train", exact=True)
        assert train.is_disabled()
        send(page, "acme.csv", ROWS)
        page.get_by_text("acme.csv: 4 examples of 2 categories").wait_for()
        train.click()
        page.locator(".q-field--error", has_text="Tenant").wait_for()
        page.get_by_role("textbox", name="Tenant", exact=True).fill("acme")
        train.click()
        training = page.locator(".o-training", has_text="acme")
        training.get_by_role("progressbar").wait_for()
        training.get_by_text("succeeded").wait_for(timeout=60_000)
        row = page.locator(".q-table tbody tr", has_text="acme")
        row.wait_for()
        cells = row.locator("td").all_inner_texts()
        assert cells[:5] == ["acme", "on disk", "minilm/1", "4", "2"]
        page.get_by_label("Text").fill("my card is gone")
        page.get_by_role("button", name="Ask").click()
        assert page.locator(".o-said strong").inner_text() in ("card", "out of scope")
        chances = page.locator(".o-chances tr").all_inner_texts()
        assert [line.split()[0] for line in chances] == ["card", "transfer"]
        row.get_by_text("in memory").wait_for()
        training.get_by_role("link", name="log").click()
        page.get_by_text("acme-intent version 1").wait_for()


def test_what_is_wrong_with_a_file_is_told_with_its_line(browser: Any, server: Up) -> None:
    with window(browser, server, "/tenants", NARROW) as page:
        page.get_by_role("button", name="Train", exact=True).wait_for()
        for content, said in (
            ("text,category\nhi,one\n,two\n", "the text is empty (bad.csv, row 3)"),
            ("text\nhi\n", "bad.csv, row 1"),
            ("text,category\n" + "hi,one\n" * 101, "more than 100 examples"),
        ):
            send(page, "bad.csv", content)
            page.locator("[role=alert]", has_text=said).wait_for()
            assert page.get_by_role("button", name="Train", exact=True).is_disabled()
        send(page, "one.csv", "text,category\nhi,one\nho,one\n")
        page.get_by_text("2 examples of 1 category").wait_for()
        page.get_by_role("textbox", name="Tenant", exact=True).fill("other")
        page.get_by_role("button", name="Train", exact=True).click()
        page.locator("[role=alert]", has_text="at least two").wait_for()


def test_who_may_only_look_cannot_train(browser: Any, server: Up) -> None:
    for name, role, pattern in (("ann", "viewer", "models/*"), ("bob", "editor", "models/bob-*")):
        with window(browser, server, "/tenants", token=guest(server, name, role, pattern)) as page:
            if role == "viewer":
                page.locator(".q-table tbody tr", has_text="acme").wait_for()
                assert page.get_by_role("button", name="Train", exact=True).count() == 0
                continue
            page.locator(".o-empty").wait_for()  # of his own there is none
            send(page, "acme.csv", ROWS)
            page.get_by_text("4 examples").wait_for()
            page.get_by_role("textbox", name="Tenant", exact=True).fill("acme")
            page.get_by_role("button", name="Train", exact=True).click()
            page.locator("[role=alert]", has_text="bob may not edit").wait_for()
