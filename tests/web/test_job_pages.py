"""The console's pages of jobs, in Chromium, with a real worker."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo.jobs import Jobs
from octavo.serving.model_config import ModelConfig
from octavo.serving.repository import Repository
from octavo.settings import load_settings

from .conftest import TOKEN, Server, running
from .test_console import NARROW, WIDE, Visit

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose repository holds a version that is damaged."""
    workspace, source = tmp_path_factory.mktemp("workspace"), tmp_path_factory.mktemp("source")
    (source / "model.onnx").write_bytes(b"weights")
    settings = load_settings(workspace)
    Repository.open(settings.repository_url, settings).publish("broken", source, ModelConfig(backend="onnxruntime"))
    (workspace / "models/broken/1/model.onnx").write_bytes(b"weightz")
    with running(workspace, "--token", TOKEN) as found:
        yield found


@pytest.fixture
def jobs(server: Server) -> Iterator[Jobs]:
    """The server's jobs, from outside: what is submitted here runs there."""
    opened = Jobs.open(load_settings(server.workspace))
    yield opened
    for job in opened.list():
        opened.cancel(job.id)
    opened.close()


@pytest.fixture(params=["wide", "narrow"])
def visit(request: pytest.FixtureRequest, browser: Any, server: Server) -> Iterator[Visit]:
    context = browser.new_context(viewport=WIDE if request.param == "wide" else NARROW)
    found = Visit(context, server.url)
    found.go(f"/login?token={TOKEN}")
    yield found
    assert found.width_over() == 0
    context.close()
    assert found.problems == []


class Held:
    """A job that waits until `release`: its checkpoint's config.json is a pipe that nobody writes to."""

    def __init__(self, jobs: Jobs, folder: Path) -> None:
        folder.mkdir()
        self.pipe = folder / "config.json"
        os.mkfifo(self.pipe)
        self.id = jobs.submit("models.add", {"name": "held", "source": str(folder)})

    def release(self) -> None:
        """Let it read on; it fails, since the checkpoint has nothing else."""
        self.pipe.write_text("{}")


def tag(page: Any, state: str) -> Any:
    return page.locator("main .oj-head .o-tag", has_text=re.compile(f"^{state}$"))


def button(page: Any, name: str) -> Any:
    return page.get_by_role("button", name=name, exact=True)


def test_a_job_that_logs(visit: Visit, jobs: Jobs) -> None:
    page = visit.go("/jobs")
    identity = jobs.submit("models.verify", owner="ann")
    entry = page.locator("main tr", has=page.locator(f"a[href='/jobs/{identity}']"))
    entry.locator(".o-tag", has_text="succeeded").wait_for()
    assert "1 of 1" in entry.inner_text()
    entry.get_by_role("link", name="Verify the model repository").click()
    tag(page, "succeeded").wait_for()
    assert page.url.endswith(f"/jobs/{identity}")
    assert page.get_attribute(".oj-head [role=progressbar]", "aria-valuenow") == "100"
    assert "100% 1 of 1" in page.inner_text(".oj-head")
    log = page.inner_text(".oj-log")
    assert re.search(r"\d\d:\d\d:\d\d", log)
    assert "broken" in log
    assert "model.onnx" in log
    facts = page.inner_text(".o-facts")
    for fact in (identity, "models.verify", "ann", "broken/1"):
        assert fact in facts
    assert not button(page, "Cancel").is_visible()
    assert not button(page, "Retry").is_visible()
    page.get_by_role("link", name="All jobs").click()
    page.locator(".oj-states a", has_text="Succeeded").click()
    page.wait_for_selector(f"a[href='/jobs/{identity}']")
    page.locator(".oj-states a", has_text="Cancelled").click()
    page.wait_for_selector(".oj-states a[aria-current]:has-text('Cancelled')")
    assert page.locator(f"a[href='/jobs/{identity}']").count() == 0


def test_a_job_is_cancelled_and_tried_again(visit: Visit, jobs: Jobs, tmp_path: Path) -> None:
    job = Held(jobs, tmp_path / "job")
    page = visit.go(f"/jobs/{job.id}")
    tag(page, "running").wait_for()
    page.wait_for_selector(".oj-head [role=progressbar][aria-valuenow='10']")
    assert "10% building held" in page.inner_text(".oj-head")
    assert not button(page, "Retry").is_visible()
    button(page, "Cancel").click()
    tag(page, "cancelled").wait_for()
    button(page, "Cancel").wait_for(state="hidden")
    assert jobs.get(job.id).state == "cancelled"
    other = Held(jobs, tmp_path / "other")  # keeps the only worker
    while jobs.get(other.id).state != "running":
        page.wait_for_timeout(50)
    button(page, "Retry").click()
    tag(page, "queued").wait_for()
    button(page, "Retry").wait_for(state="hidden")
    button(page, "Cancel").wait_for()
    assert jobs.get(job.id).state == "queued"
    jobs.cancel(other.id)
    tag(page, "running").wait_for()
    job.release()
    tag(page, "failed").wait_for()
    assert "tokenizer.json is missing" in page.inner_text("main .o-alert")
    button(page, "Retry").wait_for()


def test_a_schedule_is_shown_and_removed(visit: Visit, jobs: Jobs) -> None:
    for name, cron in (("nightly", "0 3 * * *"), ("weekly", "0 4 * * 1")):
        jobs.schedule(name, cron, "models.verify")
    page = visit.go("/jobs")
    schedules = page.locator(".oj-schedule")
    schedules.nth(1).wait_for()
    first, second = schedules.all_inner_texts()
    assert "nightly 0 3 * * *" in first
    assert "models.verify" in first
    assert "03:00" in first
    assert "not run yet" in first
    assert "weekly 0 4 * * 1" in second
    button(page, "Remove nightly").click()
    button(page, "Remove nightly").wait_for(state="hidden")
    assert [schedule.name for schedule in jobs.schedules()] == ["weekly"]
    button(page, "Remove weekly").click()
    page.get_by_text("octavo jobs schedule NAME").wait_for()
    assert jobs.schedules() == []
