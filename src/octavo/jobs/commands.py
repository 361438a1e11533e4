"""`octavo jobs`: straight in the workspace's database; a running server's workers see it within a second."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.printing import print_json, print_table, say

if TYPE_CHECKING:
    from octavo.jobs.records import Job, LogLine
    from octavo.jobs.service import Jobs

app = typer.Typer(name="jobs", help="Long work: list, follow, cancel, retry, schedule.", no_args_is_help=True)

Workspace = Annotated[
    Path | None,
    typer.Option("--workspace", "-w", envvar="OCTAVO_WORKSPACE", help="The folder worked in.", show_default=False),
]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON to standard output.")]
Identity = Annotated[str, typer.Argument(metavar="ID", help="The job as `ls` lists it.")]
Given = Annotated[
    list[str] | None, typer.Argument(metavar="[NAME=VALUE]...", help="Arguments; a value is JSON, else text.")
]
_FOLLOW_SECONDS = 0.5


@app.command("ls")
def list_all(
    state: Annotated[str, typer.Option(help="Only these.", show_default=False)] = "",
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The newest so many.")] = 30,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """List jobs, the newest first."""
    with _jobs(workspace) as jobs:
        found, counts = jobs.list(state or None, limit), jobs.counts()
    if as_json:
        print_json({"jobs": [job.body() for job in found], "counts": counts})
        return
    rows = [
        (job.id, job.kind, _state(job), f"{job.progress:.0%}", _time(job.created), _seconds(job), job.message)
        for job in found
    ]
    print_table(["job", "kind", "state", "done", "created", "took", ""], rows)


@app.command()
def show(identity: Identity, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Show one job with its result or error."""
    with _jobs(workspace) as jobs:
        job = jobs.get(identity)
    if as_json:
        print_json(job.body())
        return
    facts = {"job": job.id, "kind": job.kind, "state": _state(job), "arguments": json.dumps(job.arguments)}
    facts |= {"progress": f"{job.progress:.0%} {job.message}".strip(), "attempts": str(job.attempts)}
    facts |= {"owner": job.owner, "schedule": job.schedule or ""}
    facts |= {"created": _time(job.created), "started": _time(job.started), "finished": _time(job.finished)}
    facts |= {"took": _seconds(job)}
    if job.state == "succeeded":
        facts["result"] = json.dumps(job.result)
    if job.error is not None:
        facts |= {"error": job.error.what, "where": job.error.where, "fix": job.error.fix}
    for name, value in facts.items():
        if value:
            typer.echo(f"{name:<10} {value}")


@app.command("log")
def show_log(
    identity: Identity,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job ends.")] = False,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Write a job's log; with --json one object a line."""
    with _jobs(workspace) as jobs:
        last = 0
        while True:
            ended = jobs.get(identity).ended  # asked first: lines written until then are read below
            for line in jobs.log(identity, last):
                _echo_line(line, as_json)
                last = line.number
            if ended or not follow:
                return
            time.sleep(_FOLLOW_SECONDS)


@app.command()
def submit(
    context: typer.Context,
    kind: Annotated[str, typer.Argument(help="The kind of job.")],
    given: Given = None,
    key: Annotated[str | None, typer.Option(help="The same key makes no second job.", show_default=False)] = None,
    priority: Annotated[int, typer.Option(help="-1000 to 1000; greater runs sooner.")] = 0,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Queue a job."""
    with _jobs(workspace, _declared(context)) as jobs:
        job = jobs.get(jobs.submit(kind, _arguments(given), key=key, priority=priority))
    say(as_json, job.body(), job.id)


@app.command()
def cancel(identity: Identity, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """End a job."""
    with _jobs(workspace) as jobs:
        job = jobs.cancel(identity)
    say(as_json, job.body(), f"{identity} is {_state(job)}.")


@app.command()
def retry(identity: Identity, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Queue a failed or cancelled job again; steps that are done are not run again."""
    with _jobs(workspace) as jobs:
        job = jobs.retry(identity)
    say(as_json, job.body(), f"{identity} is {_state(job)}.")


@app.command()
def schedule(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="The schedule's name; one of this name is replaced.")],
    cron: Annotated[str, typer.Argument(help="Five fields, UTC, such as '0 3 * * *'.")],
    kind: Annotated[str, typer.Argument(help="The kind of job.")],
    given: Given = None,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Run a job again and again, while a server runs."""
    with _jobs(workspace, _declared(context)) as jobs:
        made = jobs.schedule(name, cron, kind, _arguments(given))
    say(as_json, made.body(), f"{name}: next at {_time(made.next_run)}.")


@app.command()
def schedules(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """List schedules."""
    with _jobs(workspace) as jobs:
        found = jobs.schedules()
    if as_json:
        print_json({"schedules": [each.body() for each in found]})
        return
    rows = [(each.name, each.cron, each.kind, _time(each.next_run), each.last_job or "") for each in found]
    print_table(["schedule", "cron (UTC)", "kind", "next", "last job"], rows)


@app.command()
def unschedule(name: str, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Remove a schedule."""
    with _jobs(workspace) as jobs:
        jobs.unschedule(name)
    say(as_json, {"removed": name}, f"Removed {name}.")


@contextmanager
def _jobs(workspace: Path | None, modules: Sequence[str] = ()) -> Iterator[Jobs]:
    from octavo.jobs.service import Jobs
    from octavo.settings import existing_workspace

    jobs = Jobs.open(existing_workspace(workspace), modules=modules)
    try:
        yield jobs
    finally:
        jobs.close()


def _declared(context: typer.Context) -> Sequence[str]:
    """Where kinds are declared, as the command line hands it down; unknown kinds then are refused at once."""
    return context.obj() if callable(context.obj) else ()


def _arguments(given: list[str] | None) -> dict[str, Any]:
    from octavo.errors import Invalid

    found: dict[str, Any] = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise Invalid(f"not an argument: {text!r}", "arguments", "Write name=value.")
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):
            found[name] = value
    return found


def _echo_line(line: LogLine, as_json: bool) -> None:
    typer.echo(json.dumps(line.body()) if as_json else f"{_time(line.time)}  {line.text}")


def _state(job: Job) -> str:
    return "cancelling" if job.cancelling else job.state


def _seconds(job: Job) -> str:
    return "" if job.seconds is None else f"{job.seconds:.1f} s"


def _time(moment: datetime | None) -> str:
    return "" if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")
