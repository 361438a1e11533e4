"""Submitting, watching, cancelling, retrying, scheduling; jobs that fail in every way."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jobs_support import OpenJobs, lines, until
from sqlalchemy import update

from octavo.errors import Busy, Conflict, DeadlineExceeded, Invalid, NotFound, TooLarge
from octavo.jobs import Jobs
from octavo.jobs.kinds import encode_arguments
from octavo.jobs.schedules import next_time, submit_due
from octavo.jobs.tables import ScheduleRow


@pytest.fixture
def queue(open_jobs: OpenJobs) -> Jobs:
    """Without workers."""
    return open_jobs(supervise=False, max_queued=5)


def test_a_job_waits_with_what_it_was_given(queue: Jobs) -> None:
    identity = queue.submit("test.count", {"folder": "f", "steps": 2}, priority=3, owner="ann")
    job = queue.get(identity)
    assert (job.state, job.kind, job.arguments) == ("queued", "test.count", {"folder": "f", "steps": 2})
    assert (job.priority, job.owner, job.attempts, job.progress) == (3, "ann", 0, 0.0)
    assert json.loads(json.dumps(job.body()))["created"] == job.created.isoformat()
    assert queue.counts()["queued"] == 1


def test_the_same_key_makes_one_job(queue: Jobs) -> None:
    first = queue.submit("test.exit", key="k", owner="ann")
    assert queue.submit("test.exit", key="k", owner="ann") == first
    assert queue.submit("test.exit", key="k", owner="bob") != first
    with pytest.raises(Conflict):
        queue.submit("test.raise", key="k", owner="ann")
    assert len(queue.list()) == 2


def test_the_queue_has_a_limit(queue: Jobs) -> None:
    waiting = [queue.submit("test.exit") for _ in range(5)]
    with pytest.raises(Busy) as refusal:
        queue.submit("test.exit")
    assert refusal.value.retry_after > 0
    queue.cancel(waiting[0])
    queue.submit("test.exit")


def test_newest_first_and_by_state(queue: Jobs) -> None:
    identities = [queue.submit("test.exit") for _ in range(3)]
    queue.cancel(identities[1])
    assert [job.state for job in queue.list("cancelled")] == ["cancelled"]
    assert {job.id for job in queue.list(limit=2)} < set(identities)
    assert len(queue.list(limit=2, offset=2)) == 1


@pytest.mark.parametrize(
    ("kind", "arguments", "options", "error"),
    [
        ("test.unknown", {}, {}, NotFound),
        ("../etc", {}, {}, Invalid),
        ("", {}, {}, Invalid),
        ("test.count", {}, {}, Invalid),
        ("test.count", {"folder": "f", "wrong": 1}, {}, Invalid),
        ("test.exit", [1], {}, Invalid),
        ("test.exit", {"x": float("nan")}, {}, Invalid),
        ("test.exit", {"x": object()}, {}, Invalid),
        ("test.count", {"folder": "a\0b"}, {}, Invalid),
        ("test.count", {"folder": "x" * 2_000_000}, {}, TooLarge),
        ("test.exit", {}, {"key": ""}, Invalid),
        ("test.exit", {}, {"key": "x" * 201}, Invalid),
        ("test.exit", {}, {"key": "a\nb"}, Invalid),
        ("test.exit", {}, {"priority": 5000}, Invalid),
        ("test.exit", {}, {"priority": "high"}, Invalid),
    ],
)
def test_bad_input_is_refused(queue: Jobs, kind: str, arguments: Any, options: dict[str, Any], error: type) -> None:
    with pytest.raises(error) as refusal:
        queue.submit(kind, arguments, **options)
    assert refusal.value.what
    assert queue.list() == []


@pytest.mark.parametrize("identity", ["nothing", "", "../x", "a" * 500, "' or 1=1", "\0"])
def test_unknown_jobs(queue: Jobs, identity: str) -> None:
    for ask in (queue.get, queue.log, queue.cancel, queue.retry):
        with pytest.raises(NotFound):
            ask(identity)


def test_bad_lists(queue: Jobs) -> None:
    for options in ({"state": "odd"}, {"limit": 0}, {"limit": 10_000}, {"offset": -1}):
        with pytest.raises(Invalid):
            queue.list(**options)  # type: ignore[arg-type]


TEXTS = st.text(st.characters(exclude_characters="\0"))


@example({"\\u0000": "\\\\u0000"})
@given(st.dictionaries(TEXTS, st.recursive(st.none() | st.integers() | TEXTS, st.lists, max_leaves=5)))
def test_arguments_come_back_as_they_were(arguments: dict[str, Any]) -> None:
    assert json.loads(encode_arguments(arguments)) == arguments


def test_queued_jobs_are_cancelled_at_once_and_only_ended_ones_retried(queue: Jobs) -> None:
    identity = queue.submit("test.exit")
    with pytest.raises(Conflict):
        queue.retry(identity)
    assert queue.cancel(identity).state == "cancelled"
    assert queue.cancel(identity).state == "cancelled"
    assert queue.retry(identity).state == "queued"


def test_wait_gives_up_and_the_job_goes_on(queue: Jobs) -> None:
    identity = queue.submit("test.exit")
    with pytest.raises(DeadlineExceeded):
        queue.wait(identity, 0.01)
    assert queue.get(identity).state == "queued"


def test_priority_then_order(open_jobs: OpenJobs, folder: str) -> None:
    jobs = open_jobs(supervise=False)
    order = [("low", -5), ("first", 0), ("second", 0), ("high", 5)]
    identities = [jobs.submit("test.order", {"folder": folder, "name": n}, priority=p) for n, p in order]
    jobs.supervise()
    for identity in identities:
        jobs.wait(identity, 60)
    assert lines(folder) == ["high", "first", "second", "low"]


def test_jobs_that_end_badly_say_why(open_jobs: OpenJobs) -> None:
    jobs = open_jobs(max_log_lines=20)
    names = ["raise", "exit", "not_json"]
    boom, left, odd = (jobs.submit(f"test.{name}") for name in names)
    readable = jobs.submit("test.raise", {"readable": True})
    chatter = jobs.submit("test.chatter", {"lines": 100})
    died, raised, ended = (jobs.submit("test.heavy", {"how": how}) for how in ("die", "raise", "exit"))
    error = jobs.wait(boom, 60).error
    assert error is not None
    assert error.what == "RuntimeError: boom"
    assert "sample_jobs.py" in error.where
    log = [line.text for line in jobs.log(boom)]
    assert log[0] == "about to raise"
    assert any("Traceback" in text for text in log)
    assert "exit(3)" in what(jobs, left)
    assert "not JSON" in what(jobs, odd)
    error = jobs.wait(readable, 60).error
    assert error is not None
    assert (error.what, error.where, error.fix) == ("the film is upside down", "film 7", "Turn it.")
    assert [line.text for line in jobs.log(chatter)] == [f"line {number}" for number in range(80, 100)]
    assert "SIGKILL" in what(jobs, died)
    assert "a bad value" in what(jobs, raised)
    assert "exit(5)" in what(jobs, ended)


def test_a_heavy_step_computes_elsewhere_and_reports(open_jobs: OpenJobs, folder: str) -> None:
    jobs = open_jobs()
    job = jobs.wait(jobs.submit("test.heavy", {"folder": folder}), 60)
    assert job.result["square"] == 49
    assert [str(job.result["pid"])] == lines(folder, "pids")
    assert job.message == "half"
    assert "computing" in [line.text for line in jobs.log(job.id)]


def test_cancel_kills_a_heavy_step(open_jobs: OpenJobs, folder: str) -> None:
    jobs = open_jobs()
    identity = jobs.submit("test.heavy", {"how": "spin", "folder": folder})
    until(lambda: lines(folder, "pids"))
    assert jobs.cancel(identity).cancelling
    assert jobs.wait(identity, 30).state == "cancelled"
    pid = int(lines(folder, "pids")[0])
    assert not psutil.pid_exists(pid)
    assert jobs.wait(jobs.submit("test.heavy"), 60).state == "succeeded"


def test_cancel_ends_a_function_that_does_not_return_and_retry_goes_on(open_jobs: OpenJobs, folder: str) -> None:
    jobs = open_jobs()
    identity = jobs.submit("test.loop", {"folder": folder})
    until(lambda: lines(folder) == ["begun"])
    jobs.cancel(identity)
    assert jobs.wait(identity, 60).state == "cancelled"
    assert "its worker was stopped" in jobs.log(identity)[-1].text
    jobs.retry(identity)
    until(lambda: jobs.get(identity).state == "running" and len(jobs.log(identity)) >= 2)
    jobs.cancel(identity)
    assert jobs.wait(identity, 60).state == "cancelled"
    assert lines(folder) == ["begun"]


def test_retry_repeats_only_what_failed(open_jobs: OpenJobs, database_url: str, folder: str) -> None:
    jobs = open_jobs(database_url)
    identity = jobs.submit("test.fail_once", {"folder": folder})
    job = jobs.wait(identity, 60)
    assert job.state == "failed"
    assert job.error is not None
    assert "not this time" in job.error.what
    jobs.retry(identity)
    job = jobs.wait(identity, 60)
    assert (job.state, job.result, job.attempts, job.error) == ("succeeded", "done", 2, None)
    assert lines(folder) == ["first", "second", "third"]
    assert [line.text for line in jobs.log(identity)][-1] == "second is done"


def test_schedules_submit_once_and_do_not_overlap(queue: Jobs) -> None:
    made = queue.schedule("nightly", "0 3 * * *", "test.exit", owner="ann")
    assert made.next_run > datetime.now(UTC)
    assert (made.next_run.hour, made.next_run.minute) == (3, 0)
    assert submit_due(queue, datetime.now(UTC)) == []
    later = made.next_run + timedelta(days=3, minutes=1)
    (identity,) = submit_due(queue, later)
    assert submit_due(queue, later) == []
    job = queue.get(identity)
    assert (job.schedule, job.owner) == ("nightly", "ann")
    (schedule,) = queue.schedules()
    assert schedule.last_job == identity
    assert schedule.next_run == next_time("0 3 * * *", later)
    assert submit_due(queue, later + timedelta(days=1)) == []  # the last one is still queued
    queue.cancel(identity)
    assert len(submit_due(queue, later + timedelta(days=2))) == 1
    queue.unschedule("nightly")
    assert queue.schedules() == []
    with pytest.raises(NotFound):
        queue.unschedule("nightly")


def test_a_supervisor_runs_what_is_due(open_jobs: OpenJobs, folder: str) -> None:
    jobs = open_jobs()
    jobs.schedule("often", "* * * * *", "test.count", {"folder": folder, "steps": 1})
    with jobs.database.session() as session:
        session.execute(update(ScheduleRow).values(next_run=datetime.now(UTC)))
    until(lambda: lines(folder) == ["0"])
    (job,) = jobs.list()
    assert job.schedule == "often"


@pytest.mark.parametrize("cron", ["", "x", "* * * *", "99 * * * *", "0 0 31 2 *", "* * * * * *", "a" * 500, "\0"])
def test_bad_crons(queue: Jobs, cron: str) -> None:
    with pytest.raises(Invalid):
        queue.schedule("s", cron, "test.exit")


def test_two_servers_submit_a_schedule_once(open_jobs: OpenJobs, database_url: str) -> None:
    one, two = (open_jobs(database_url, supervise=False) for _ in range(2))
    later = one.schedule("s", "0 3 * * *", "test.exit").next_run + timedelta(minutes=1)
    assert len(submit_due(one, later) + submit_due(two, later)) == 1


def test_the_server_side_is_free_of_dbos(queue: Jobs, tmp_path: Path) -> None:
    import subprocess
    import sys

    program = (
        "import sys; from octavo.jobs import Jobs; from octavo.settings import load_settings\n"
        "jobs = Jobs.open(load_settings(sys.argv[1])); jobs.submit('a.b'); jobs.list()\n"
        "sys.exit('dbos' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path / "w")], check=False).returncode == 0


def what(jobs: Jobs, identity: str) -> str:
    job = jobs.wait(identity, 60)
    assert job.state == "failed"
    assert job.error is not None
    return job.error.what
