"""The HTTP and the command-line door."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from jobs_support import OpenJobs
from typer.testing import CliRunner, Result

from octavo.errors import Forbidden, OctavoError
from octavo.jobs import Jobs
from octavo.jobs.commands import app as commands
from octavo.jobs.journal import Journal
from octavo.jobs.markup import draw_job, draw_list, draw_log
from octavo.jobs.routes import routes
from octavo.jobs.tables import JobRow

RANKS = {"view": 1, "infer": 1, "edit": 2, "admin": 3}


def require(principal: Any, action: str, resource: str) -> None:
    if RANKS[action] > principal.rank:
        raise Forbidden(f"may not {action}", resource)


@pytest.fixture
def jobs(open_jobs: OpenJobs) -> Jobs:
    return open_jobs(supervise=False)


def client(jobs: Jobs, rank: int = 3) -> TestClient:
    app = FastAPI()

    @app.middleware("http")
    async def identify(request: Request, answer: Any) -> Any:
        request.state.principal = SimpleNamespace(name="ann", rank=rank)
        return await answer(request)

    @app.exception_handler(OctavoError)
    async def problem(request: Request, error: OctavoError) -> JSONResponse:
        return JSONResponse(error.problem(), error.status)

    app.include_router(routes(jobs, require))
    return TestClient(app)


def test_submit_look_cancel_retry(jobs: Jobs) -> None:
    http = client(jobs)
    answer = http.post("/api/jobs", json={"kind": "test.exit", "key": "k"})
    assert answer.status_code == 202
    identity = answer.json()["id"]
    assert answer.headers["location"] == f"/api/jobs/{identity}"
    assert answer.json()["owner"] == "ann"
    assert http.post("/api/jobs", json={"kind": "test.exit", "key": "k"}).json()["id"] == identity
    assert [job["id"] for job in http.get("/api/jobs?state=queued").json()["jobs"]] == [identity]
    assert http.post(f"/api/jobs/{identity}/cancel").json()["state"] == "cancelled"
    assert http.post(f"/api/jobs/{identity}/retry").json()["state"] == "queued"
    assert http.get(f"/api/jobs/{identity}").json()["state"] == "queued"
    assert http.get(f"/api/jobs/{identity}/log").json() == {"lines": []}
    assert {"name": "test.exit", "title": "test.exit"} in http.get("/api/jobs/kinds").json()["kinds"]


def test_schedules_over_http(jobs: Jobs) -> None:
    http = client(jobs)
    made = http.put("/api/jobs/schedules/nightly", json={"cron": "0 3 * * *", "kind": "test.exit"})
    assert made.json()["next_run"].endswith("03:00:00+00:00")
    assert len(http.get("/api/jobs/schedules").json()["schedules"]) == 1
    assert http.delete("/api/jobs/schedules/nightly").status_code == 204
    assert http.delete("/api/jobs/schedules/nightly").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/api/jobs", {"kind": "no.such"}, 404),
        ("POST", "/api/jobs", {"kind": "test.count"}, 400),
        ("POST", "/api/jobs", {"kind": "test.exit", "arguments": []}, 422),
        ("POST", "/api/jobs", {"kind": "test.exit", "colour": 1}, 422),
        ("GET", "/api/jobs?state=odd", None, 400),
        ("GET", "/api/jobs?limit=100000", None, 422),
        ("GET", "/api/jobs/nothing", None, 404),
        ("GET", "/api/jobs/%00", None, 404),
        ("POST", "/api/jobs/nothing/retry", None, 404),
        ("PUT", "/api/jobs/schedules/x", {"cron": "no", "kind": "test.exit"}, 400),
        ("PUT", "/api/jobs/schedules/X%20Y", {"cron": "0 3 * * *", "kind": "test.exit"}, 400),
    ],
)
def test_bad_requests(jobs: Jobs, method: str, path: str, body: Any, status: int) -> None:
    assert client(jobs).request(method, path, json=body).status_code == status


def test_rights(jobs: Jobs) -> None:
    identity = jobs.submit("test.exit")
    viewer, editor, nobody = client(jobs, 1), client(jobs, 2), client(jobs, 0)
    assert viewer.get(f"/api/jobs/{identity}").status_code == 200
    assert viewer.post(f"/api/jobs/{identity}/cancel").status_code == 403
    assert editor.post("/api/jobs", json={"kind": "test.exit"}).status_code == 403
    assert editor.post(f"/api/jobs/{identity}/cancel").status_code == 202
    for path in ("", "/kinds", "/schedules", f"/{identity}", f"/{identity}/log", "/unknown"):
        assert nobody.get(f"/api/jobs{path}").status_code == 403
    assert nobody.post("/api/jobs/unknown/cancel").status_code == 403
    assert nobody.delete("/api/jobs/schedules/unknown").status_code == 403


def octavo(jobs: Jobs, *words: str) -> Result:
    where = ["--workspace", str(jobs.settings.workspace)]
    return CliRunner().invoke(commands, [*words, *where], obj=lambda: ["sample_jobs"])


def told(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_commands(jobs: Jobs) -> None:
    made = told(octavo(jobs, "submit", "test.order", "folder=/x", "name=7", "--priority", "2", "--json"))
    assert (made["arguments"], made["priority"]) == ({"folder": "/x", "name": 7}, 2)
    identity = made["id"]
    assert told(octavo(jobs, "ls", "--json"))["counts"]["queued"] == 1
    assert identity in octavo(jobs, "ls").stdout
    assert told(octavo(jobs, "show", identity, "--json"))["id"] == identity
    assert "test.order" in octavo(jobs, "show", identity).stdout
    assert told(octavo(jobs, "cancel", identity, "--json"))["state"] == "cancelled"
    assert told(octavo(jobs, "retry", identity, "--json"))["state"] == "queued"
    assert told(octavo(jobs, "schedule", "nightly", "0 3 * * *", "test.exit", "--json"))["name"] == "nightly"
    assert "nightly" in octavo(jobs, "schedules").stdout
    assert told(octavo(jobs, "unschedule", "nightly", "--json")) == {"removed": "nightly"}
    assert told(octavo(jobs, "schedules", "--json")) == {"schedules": []}


def test_log_command(jobs: Jobs) -> None:
    identity = jobs.submit("test.exit")
    with jobs.database.session() as session:
        row = session.get(JobRow, identity)
        assert row is not None
        row.state, row.worker = "running", "w"
    journal = Journal(jobs.database, identity, "w", 100, (0, -1))
    journal.log("one\ntwo \x1b[31mred")
    journal.flush()
    with jobs.database.session() as session:
        row = session.get(JobRow, identity)
        assert row is not None
        row.state = "failed"
    lines = [json.loads(line) for line in octavo(jobs, "log", identity, "--follow", "--json").stdout.splitlines()]
    assert [line["text"] for line in lines] == ["one", "two  [31mred"]


def test_command_errors_are_readable(jobs: Jobs) -> None:
    for words in (
        ["show", "nothing"],
        ["submit", "../x"],
        ["submit", "a.b", "noequals"],
        ["schedule", "s", "x", "a.b"],
    ):
        error = octavo(jobs, *words).exception
        assert isinstance(error, OctavoError)
        assert error.fix


def test_markup_is_escaped(jobs: Jobs, tmp_path: Path) -> None:
    identity = jobs.submit("test.order", {"folder": "<script>", "name": "<b>"}, owner="<i>")
    with jobs.database.session() as session:
        row = session.get(JobRow, identity)
        assert row is not None
        row.state, row.worker, row.message = "running", "w", "<u>"
    journal = Journal(jobs.database, identity, "w", 100, (0, -1))
    journal.log("<p>")
    journal.flush()
    job = jobs.get(identity)
    drawn = draw_job(job, jobs.kinds) + draw_list([job], jobs.kinds, "", 1, False) + draw_log(jobs.log(identity))
    assert not any(tag in drawn for tag in ("<script>", "<b>", "<i>", "<u>", "<p>l"))
    assert "&lt;script&gt;" in drawn
