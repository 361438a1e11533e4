"""The console's pages of endpoints and roll-outs, in Chromium."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.errors import OctavoError
from octavo.serving.client import Client
from octavo.serving.packaging.artifact import stage
from octavo.settings import load_settings

from .browsing import NARROW, WIDE, guest, window
from .live import Up, octavo_up
from .served_models import BATCHED, publish_tiny_models, times

pytestmark = pytest.mark.browser

ONE = np.ones((1, 4), np.float32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, session_folder: Path) -> Iterator[Up]:
    workspace = tmp_path_factory.mktemp("endpoints") / "workspace"
    publish_tiny_models(workspace / "models")
    cache = {"OCTAVO_SERVING__CACHE": str(session_folder / "cache"), "OCTAVO_SERVING__WATCH_SECONDS": "0.2"}
    with octavo_up(workspace, **cache) as up:
        yield up


@pytest.fixture(scope="module")
def client(server: Up) -> Iterator[Client]:
    with Client(server.url, token=server.token) as opened:
        yield opened


@pytest.fixture
def deploy(server: Up, client: Client, tmp_path: Path) -> Any:
    """Deploy a model that multiplies by a factor."""

    def deploy_(name: str, factor: float, **rollout: float) -> None:
        folder = tmp_path / str(factor)
        folder.mkdir(exist_ok=True)
        (folder / "model.onnx").write_bytes(times(factor))
        (folder / "config.pbtxt").write_text(BATCHED)
        client.deploy(name, {"package": stage(folder, load_settings(server.workspace)), **rollout})

    return deploy_


def card(page: Any, name: str) -> Any:
    return page.get_by_role("region", name=name, exact=True)


def button(place: Any, name: str) -> Any:
    return place.get_by_role("button", name=name, exact=True)


def choose(page: Any, field: Any, option: str) -> None:
    field.click()
    page.locator(".q-menu .q-item").get_by_text(option, exact=True).click()


def test_without_any_the_next_step_is_told(browser: Any, server: Up) -> None:
    for path, command in (("/endpoints", "octavo endpoints set NAME"), ("/rollouts", "octavo models deploy SOURCE")):
        with window(browser, server, path) as page:
            page.locator(".o-empty code", has_text=command).first.wait_for()


@pytest.mark.parametrize("form", [WIDE, NARROW], ids=["wide", "narrow"])
def test_an_endpoint_is_made_changed_and_removed(browser: Any, server: Up, client: Client, form: Any) -> None:
    with window(browser, server, "/endpoints", form) as page:
        button(page, "New endpoint").click()
        page.get_by_label("Name").fill("no such/name")
        button(page, "Save").click()
        page.get_by_text("Choose one").wait_for()
        assert page.locator(".q-field--error").count() == 3  # the name, the variant without one, its model
        page.get_by_label("Name").fill("front")
        page.get_by_label("Variant").fill("old")
        choose(page, page.get_by_label("Model"), "double")
        page.get_by_label("Version").fill("9")
        button(page, "Save").click()
        page.locator(".q-dialog [role=alert]", has_text="version '9'").wait_for()
        page.get_by_label("Version").fill("")
        button(page, "Add a variant").click()
        page.get_by_label("Variant").nth(1).fill("copy")
        choose(page, page.get_by_label("Model").nth(1), "triple")
        page.get_by_role("checkbox", name="Shadow").nth(1).click()
        button(page, "Save").click()
        front = card(page, "front")
        front.wait_for()
        assert [one["weight"] for one in client.endpoint("front")["variants"]] == [1, 1]
        assert float(client.infer("front", {"x": ONE})["y"][0, 0]) == 2
        front.get_by_text("0 % of 1").wait_for()  # the shadow multiplies by three
        button(front, "Change front").click()
        button(page, "Take out").nth(1).click()
        page.get_by_label("Share").nth(1).wait_for(state="detached")
        page.get_by_label("Share").fill("7")
        client.set_endpoint("front", {"variants": [{"name": "main", "model": "double"}]})
        button(page, "Save").click()
        page.locator(".q-dialog [role=alert]", has_text="changed meanwhile").wait_for()
        button(page, "Cancel").click()
        front.get_by_text("main").wait_for()
        button(front, "Remove front").click()
        button(page, "Remove it").click()
        front.wait_for(state="detached")
    assert client.endpoints() == []


@pytest.mark.parametrize("form", [WIDE, NARROW], ids=["wide", "narrow"])
def test_a_roll_out_step_by_step(browser: Any, server: Up, client: Client, deploy: Any, form: Any) -> None:
    name = f"acme-{form[0]}"
    deploy(name, 2)
    deploy(name, 3, share=0.05)
    with window(browser, server, "/rollouts", form) as page:
        place = card(page, name)
        place.get_by_text("rolling out").wait_for()
        button(place, f"50 % of the traffic to the new version of {name}").click()
        place.locator("[aria-pressed=true]", has_text="50 %").wait_for()
        assert client.endpoint(name)["variants"][1]["weight"] == 0.5
        for wide in (4, 9):
            for _ in range(20):
                try:
                    client.infer(name, {"x": np.ones((1, wide), np.float32)})
                except OctavoError:
                    continue
        place.locator("tr", has_text="Errors").locator(".o-bad").nth(1).wait_for()  # of both versions
        place.locator("tr", has_text="p99 ms").get_by_text(re.compile(r"^\d")).nth(1).wait_for()
        button(place, "Promote").click()
        button(page, "Promote it").click()
        place.get_by_text("promoted by admin").wait_for()
        assert float(client.infer(name, {"x": ONE})["y"][0, 0]) == 3
        button(place, "Promote").wait_for(state="hidden")
        button(place, "Roll back").click()
        page.get_by_text(f"Roll {name} back to version 1?").wait_for()
        button(page, "Roll it back").click()
        place.get_by_text("rolled back by admin").wait_for()
        assert float(client.infer(name, {"x": ONE})["y"][0, 0]) == 2
        log = place.locator("li").all_inner_texts()
        assert [next(word for word in ("rolled", "promoted", "share", "deployed") if word in line) for line in log] == [
            "rolled", "promoted", "share", "deployed", "deployed",
        ]  # fmt: skip


def test_many_can_be_searched(browser: Any, server: Up, client: Client) -> None:
    names = [f"many-{number}" for number in range(60)]
    for name in names:
        client.set_endpoint(name, {"variants": [{"name": "main", "model": "double"}]})
    with window(browser, server, "/endpoints") as page:
        page.get_by_text("50 of 6").wait_for()
        page.get_by_label("Search endpoints").fill("MANY-59")
        card(page, "many-59").wait_for()
        card(page, "many-10").wait_for(state="detached")
        page.get_by_label("Search endpoints").fill("nothing like it")
        page.get_by_text("0 of 6").wait_for()
        assert page.locator(".o-empty").count() == 0
    for name in names:
        client.remove_endpoint(name)


def test_who_may_only_look_sees_no_buttons_and_only_their_own(
    browser: Any, server: Up, client: Client, deploy: Any
) -> None:
    deploy("mine", 2)
    deploy("mine", 3, shadow=1.0)
    deploy("theirs", 2)
    token = guest(server, "ann", "viewer", "models/mine")
    for path in ("/endpoints", "/rollouts"):
        with window(browser, server, path, token=token) as page:
            card(page, "mine").wait_for()
            assert card(page, "theirs").count() == 0
            assert page.locator(".o-page button:visible").all_inner_texts() == []
    client.remove_endpoint("mine")
    client.remove_endpoint("theirs")
