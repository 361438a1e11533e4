"""The console's page of models, in Chromium, on a server with the real embedding model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from octavo.serving.client import Client

from .live import Up

pytestmark = pytest.mark.browser


@pytest.fixture(params=[(1300, "light"), (400, "dark")], ids=["wide", "narrow"])
def page(request: pytest.FixtureRequest, browser: Any, live_server: Up) -> Iterator[Any]:
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    found = context.new_page()
    found.set_default_timeout(15_000)
    found.goto(f"{live_server.url}/login?token={live_server.token}")
    found.goto(f"{live_server.url}/models")
    found.wait_for_selector(".q-table tbody tr")
    yield found
    over = found.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    context.close()
    assert over == 0


def row(page: Any, name: str) -> Any:
    page.fill("[aria-label='Search models']", name)
    return page.locator(".q-table tbody tr", has=page.locator(f"td:text-is('{name}')"))


def test_load_pin_unload(page: Any, live_server: Up) -> None:
    with Client(live_server.url, token=live_server.token) as client:
        client.pin("triple", False)
        client.unload("triple")
        triple = row(page, "triple")
        triple.get_by_text("on disk").wait_for()
        triple.get_by_role("button", name="Load").click()
        triple.get_by_text("in memory").wait_for()
        assert "triple" in [model["name"] for model in client.residency()["models"]]
        triple.get_by_role("button", name="Pin").click()
        triple.get_by_text("pinned").wait_for()
        triple.get_by_role("button", name="Unpin").click()
        triple.get_by_text("in memory").wait_for()
        triple.get_by_role("button", name="Unload").click()
        triple.get_by_text("on disk").wait_for()
        assert "triple" not in [model["name"] for model in client.residency()["models"]]


def test_another_version_answers(page: Any, live_server: Up) -> None:
    with Client(live_server.url, token=live_server.token) as client:
        client.use_version("versions", "2")
        versions = row(page, "versions")
        select = versions.get_by_role("combobox")
        select.wait_for()
        page.wait_for_function("text => document.querySelector('.q-table tbody').innerText.includes(text)", arg="2")
        select.click()
        page.locator(".q-menu .q-item", has_text="1").click()
        page.locator(".q-notification", has_text="answers with another version").wait_for()
        default = [one for one in client.models() if one["name"] == "versions" and one["default"]]
        assert [one["version"] for one in default] == ["1"]
        client.use_version("versions", "2")


def test_try_it(page: Any) -> None:
    ask = page.get_by_role("button", name="Ask")
    page.get_by_role("combobox", name="Model").click()
    page.locator(".q-menu .q-item").get_by_text("minilm", exact=True).click()
    asked = page.get_by_role("textbox", name="Texts, one per line")
    asked.fill("a dog runs\na puppy is running\ninterest rates rose")
    ask.click()
    cells = page.locator("main .o-table td")
    cells.first.wait_for()
    likeness = [float(text) for text in cells.all_inner_texts()]
    assert len(likeness) == 9
    assert likeness[1] > likeness[2]
    asked.fill("  ")
    ask.click()
    page.locator(".o-alert", has_text="nothing to ask").wait_for()
    asked.fill('{"x": [[1, 2]')
    ask.click()
    page.locator(".o-alert", has_text="not JSON").wait_for()


def test_the_budget_and_the_counters_are_live(page: Any, live_server: Up) -> None:
    bar = page.locator("[role=img][aria-label$='MiB held']")
    bar.wait_for()
    with Client(live_server.url, token=live_server.token) as client:
        before = page.inner_text(".o-figure:has-text('cold starts') .o-figure-value")
        client.unload("minilm-int8")
        client.embed(["a"], model="minilm-int8")
        page.wait_for_function(
            "before => [...document.querySelectorAll('.o-figure')].some(figure => "
            "figure.innerText.includes('cold starts') && !figure.innerText.startsWith(before + '\\n'))",
            arg=before,
        )
        page.wait_for_function(  # its heap, and its part of weights that other processes map too
            "() => [...document.querySelectorAll('[role=img] i')].some(part => "
            "part.title.startsWith('minilm-int8: ') && parseFloat(part.title.split(' ').at(-2)) > 2)"
        )
    assert page.locator("canvas").count() >= 1
