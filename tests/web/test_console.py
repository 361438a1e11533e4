"""The console in Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from .conftest import TOKEN, Server

pytestmark = pytest.mark.browser
WIDE, NARROW = {"width": 1300, "height": 850}, {"width": 400, "height": 800}


class Visit:
    """A browser window, signed in, that notes everything that goes wrong in it."""

    def __init__(self, context: Any, url: str) -> None:
        self.page, self.url, self.problems = context.new_page(), url, []
        self.page.set_default_timeout(10_000)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("requestfailed", lambda request: self.problems.append(request.url))
        self.page.on("console", self._note)
        context.on("request", self._inside)

    def go(self, path: str) -> Any:
        self.page.goto(self.url + path)
        return self.page

    def width_over(self) -> int:
        return int(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    def theme(self) -> str:
        return "dark" if self.page.evaluate("document.body.classList.contains('body--dark')") else "light"

    def _note(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    def _inside(self, request: Any) -> None:
        if not request.url.startswith((self.url, self.url.replace("http", "ws", 1), "data:", "blob:")):
            self.problems.append(f"asked {request.url}")


@pytest.fixture(params=["wide-light", "narrow-light", "wide-dark", "narrow-dark"])
def visit(request: pytest.FixtureRequest, browser: Any, server: Server) -> Iterator[Visit]:
    size, scheme = request.param.split("-")
    context = browser.new_context(viewport=WIDE if size == "wide" else NARROW, color_scheme=scheme)
    found = Visit(context, server.url)
    found.go(f"/login?token={TOKEN}")
    yield found
    context.close()


def test_every_page_of_the_navigation_is_sound(visit: Visit) -> None:
    page = visit.go("/")
    links = page.eval_on_selector_all(".o-side a", "nodes => nodes.map(node => node.getAttribute('href'))")
    assert links[0] == "/"
    for link in links:
        page = visit.go(link)
        page.wait_for_selector("main h1")
        page.wait_for_selector(f".o-nav-here[href='{link}']", state="attached")
        assert visit.width_over() == 0, link
        assert page.title().endswith("· octavo")
        assert page.eval_on_selector("main h1", "node => node.textContent") != ""
    assert visit.problems == []


def test_the_overview_tells_what_runs(visit: Visit, server: Server) -> None:
    text = visit.go("/").inner_text("main")
    assert str(server.pid) in text
    assert str(server.workspace) in text
    assert "MiB" in text


def test_login_and_missing_pages_fit(visit: Visit) -> None:
    for path in ("/login", "/nothing-here"):
        visit.go(path)
        assert visit.width_over() == 0
    assert visit.page.inner_text("h1") == "Not found"


def test_signing_in_by_form_leads_on_and_signing_out_back(browser: Any, server: Server) -> None:
    context = browser.new_context(viewport=WIDE)
    page = context.new_page()
    page.goto(server.url + "/")
    assert "/login" in page.url
    page.fill("input[name=token]", "wrong")
    page.press("input[name=token]", "Enter")
    assert "not known" in page.inner_text("[role=alert]")
    page.fill("input[name=token]", TOKEN)
    page.press("input[name=token]", "Enter")
    page.wait_for_selector("main h1")
    assert page.url == server.url + "/"
    page.click("[aria-label=Account]")
    page.click("text=Sign out")
    page.wait_for_url("**/login")
    page.goto(server.url + "/")
    assert "/login" in page.url
    context.close()


def test_the_theme_follows_the_system_until_chosen_and_stays_chosen(browser: Any, server: Server) -> None:
    context = browser.new_context(viewport=WIDE, color_scheme="dark")
    visit = Visit(context, server.url)
    visit.go(f"/login?token={TOKEN}")
    page = visit.go("/")
    page.wait_for_selector("main h1")
    page.wait_for_selector("body.body--dark")
    page.click("[aria-label=Theme]")  # auto -> light
    page.wait_for_selector("body.body--light")
    page.reload()
    page.wait_for_selector("main h1")
    assert visit.theme() == "light"
    page.click("[aria-label=Theme]")  # light -> dark
    page.wait_for_selector("body.body--dark")
    page.emulate_media(color_scheme="light")
    page.reload()
    page.wait_for_selector("main h1")
    assert visit.theme() == "dark"
    page.goto(server.url + "/login")
    assert visit.theme() == "dark"
    context.close()


def test_the_navigation_folds_away_on_a_phone(browser: Any, server: Server) -> None:
    context = browser.new_context(viewport=NARROW)
    visit = Visit(context, server.url)
    visit.go(f"/login?token={TOKEN}")
    page = visit.go("/")
    page.wait_for_selector("main h1")
    assert not page.is_visible(".o-side")
    page.click("[aria-label=Navigation]")
    page.wait_for_selector(".o-side", state="visible")
    page.click("main h1", position={"x": 330, "y": 5}, force=True)
    page.wait_for_selector(".o-side", state="hidden")
    context.close()


def test_live_figures_come_over_the_socket(browser: Any, server: Server) -> None:
    context = browser.new_context(viewport=WIDE)
    visit = Visit(context, server.url)
    visit.go(f"/login?token={TOKEN}")
    sockets: list[str] = []
    visit.page.on("websocket", lambda socket: sockets.append(socket.url))
    page = visit.go("/")
    before = page.inner_text(".o-figure-value >> nth=0")
    page.wait_for_function("before => document.querySelector('.o-figure-value').innerText !== before", arg=before)
    assert sockets
    context.close()
