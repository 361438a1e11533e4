"""The HTTP door: `/api/jobs`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from octavo.jobs.permission import Require
from octavo.jobs.records import Job
from octavo.jobs.service import Jobs

ALL = "jobs/*"


class NewJob(BaseModel):
    """What to run."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"kind": "serving.pack"}]})

    kind: str = Field(description="A kind of `GET /api/jobs/kinds`.")
    arguments: dict[str, Any] = Field({}, description="What its function takes.")
    key: str | None = Field(None, description="A second submission under the same key makes no second job.")
    priority: int = Field(0, description="-1000 to 1000; greater runs sooner.")


class NewSchedule(BaseModel):
    """What to run again and again."""

    model_config = ConfigDict(extra="forbid")

    cron: str = Field(description="Five fields, UTC.", examples=["0 3 * * *"])
    kind: str = Field(description="A kind of `GET /api/jobs/kinds`.")
    arguments: dict[str, Any] = Field({}, description="What its function takes.")


def routes(jobs: Jobs, require: Require) -> APIRouter:
    """The routes of `jobs`; `require` is asked with `request.state.principal`."""
    router = APIRouter(prefix="/api/jobs", tags=["jobs"])
    _add_reading(router, jobs, require)
    _add_changing(router, jobs, require)
    _add_schedules(router, jobs, require)
    _add_one(router, jobs, require)
    return router


def _add_reading(router: APIRouter, jobs: Jobs, require: Require) -> None:
    @router.get("")
    def list_jobs(
        request: Request,
        state: str | None = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
        offset: Annotated[int, Query(ge=0)] = 0,
    ) -> dict[str, Any]:
        """The newest jobs first, and how many there are in each state."""
        require(_principal(request), "view", ALL)
        return {"jobs": [job.body() for job in jobs.list(state, limit, offset)], "counts": jobs.counts()}

    @router.get("/kinds")
    def list_kinds(request: Request) -> dict[str, Any]:
        """What can be submitted."""
        require(_principal(request), "view", ALL)
        return {"kinds": [{"name": kind.name, "title": kind.title} for kind in jobs.kinds.values()]}


def _add_changing(router: APIRouter, jobs: Jobs, require: Require) -> None:
    @router.post("", status_code=202)
    def submit(request: Request, response: Response, new: NewJob) -> dict[str, Any]:
        """Queue a job."""
        require(_principal(request), "admin", f"jobs/{new.kind}")
        owner = _owner(request)
        identity = jobs.submit(new.kind, new.arguments, key=new.key, priority=new.priority, owner=owner)
        response.headers["location"] = f"/api/jobs/{identity}"
        return jobs.get(identity).body()

    @router.post("/{identity}/cancel", status_code=202)
    def cancel(request: Request, identity: str) -> dict[str, Any]:
        """End a job; a running one is `cancelling` until it has ended."""
        _allowed(request, identity, "edit")
        return jobs.cancel(identity).body()

    @router.post("/{identity}/retry", status_code=202)
    def retry(request: Request, identity: str) -> dict[str, Any]:
        """Queue a failed or cancelled job again; steps that are done are not run again."""
        _allowed(request, identity, "edit")
        return jobs.retry(identity).body()

    def _allowed(request: Request, identity: str, action: Any) -> Job:
        require(_principal(request), "view", ALL)  # before telling whether there is such a job
        job = jobs.get(identity)
        require(_principal(request), action, f"jobs/{job.kind}")
        return job


def _add_schedules(router: APIRouter, jobs: Jobs, require: Require) -> None:
    @router.get("/schedules")
    def list_schedules(request: Request) -> dict[str, Any]:
        """All schedules."""
        require(_principal(request), "view", "jobs/schedules/*")
        return {"schedules": [schedule.body() for schedule in jobs.schedules()]}

    @router.put("/schedules/{name}")
    def schedule(request: Request, name: str, new: NewSchedule) -> dict[str, Any]:
        """Make or replace a schedule."""
        require(_principal(request), "admin", f"jobs/schedules/{name}")
        return jobs.schedule(name, new.cron, new.kind, new.arguments, owner=_owner(request)).body()

    @router.delete("/schedules/{name}", status_code=204)
    def unschedule(request: Request, name: str) -> None:
        """Remove a schedule."""
        require(_principal(request), "admin", f"jobs/schedules/{name}")
        jobs.unschedule(name)


def _add_one(router: APIRouter, jobs: Jobs, require: Require) -> None:
    @router.get("/{identity}")
    def get_job(request: Request, identity: str) -> dict[str, Any]:
        """One job."""
        require(_principal(request), "view", ALL)
        return jobs.get(identity).body()

    @router.get("/{identity}/log")
    def get_log(
        request: Request,
        identity: str,
        after: Annotated[int, Query(ge=0, description="Number of the last line already read.")] = 0,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    ) -> dict[str, Any]:
        """Lines of a job's log, oldest first."""
        require(_principal(request), "view", ALL)
        return {"lines": [line.body() for line in jobs.log(identity, after, limit)]}


def _principal(request: Request) -> Any:
    return getattr(request.state, "principal", None)


def _owner(request: Request) -> str:
    return str(getattr(_principal(request), "name", ""))
