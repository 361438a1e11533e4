"""Kill -9 of workers and servers: every step exactly once, on SQLite and PostgreSQL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from jobs_support import MODULE, OpenJobs, lines, until
from sqlalchemy import select

from octavo.jobs.tables import WorkerRow

STEPS = 30


def test_worker_killed_in_the_middle_of_30_steps(open_jobs: OpenJobs, database_url: str, folder: str) -> None:
    jobs = open_jobs(database_url)
    identity = jobs.submit("test.count", {"folder": folder, "steps": STEPS, "die_in": [7, 21]})
    job = jobs.wait(identity, 120)
    assert job.state == "succeeded", job.error
    assert lines(folder) == [str(number) for number in range(STEPS)]
    assert job.result == {"total": sum(range(STEPS)), "attempt": 3}
    texts = [line.text for line in jobs.log(identity)]
    assert [text for text in texts if not text.startswith("attempt")] == [
        "counting begins",
        *(f"after {number}" for number in range(STEPS)),
    ]
    assert job.attempts == 3
    assert job.progress == 1.0


def test_worker_killed_from_outside_repeats_only_the_step_in_flight(open_jobs: OpenJobs, folder: str) -> None:
    jobs = open_jobs()
    identity = jobs.submit("test.slow", {"folder": folder, "steps": 8, "seconds": 0.25})
    until(lambda: len(lines(folder)) >= 3)
    worker = only_worker(jobs)
    os.kill(worker.pid, signal.SIGKILL)
    before = lines(folder)
    assert jobs.wait(identity, 60).state == "succeeded"
    assert [int(line) for line in dict.fromkeys(lines(folder))] == list(range(8))
    repeated = [line for line in lines(folder, "begun") if lines(folder, "begun").count(line) > 1]
    assert set(repeated) <= {str(len(before)), str(len(before) - 1)}


def test_server_killed_and_its_worker_lives_on(open_jobs: OpenJobs, tmp_path: Path, folder: str) -> None:
    """Kill -9 of the server alone: the worker finishes, a new server starts no second one."""
    jobs = open_jobs(supervise=False)
    server = start_server(jobs.settings.workspace)
    identity = jobs.submit("test.slow", {"folder": folder, "steps": 6, "seconds": 0.3})
    until(lambda: len(lines(folder)) >= 1)
    server.kill()
    server.wait()
    worker = only_worker(jobs)
    jobs.supervise()
    assert jobs.wait(identity, 60).attempts == 1
    assert lines(folder) == [str(number) for number in range(6)]
    assert jobs.supervisor is not None
    assert jobs.supervisor.pids() == []
    os.kill(worker.pid, signal.SIGTERM)
    until(lambda: not psutil.pid_exists(worker.pid))


def test_server_and_worker_killed_together(open_jobs: OpenJobs, folder: str) -> None:
    jobs = open_jobs(supervise=False)
    server = start_server(jobs.settings.workspace)
    identity = jobs.submit("test.slow", {"folder": folder, "steps": 6, "seconds": 0.3})
    until(lambda: len(lines(folder)) >= 2)
    worker = only_worker(jobs)
    server.kill()
    os.kill(worker.pid, signal.SIGKILL)
    server.wait()
    done = lines(folder)
    jobs.supervise()
    job = jobs.wait(identity, 60)
    assert job.state == "succeeded"
    assert job.attempts == 2
    assert all(lines(folder).count(line) == 1 for line in done[:-1])


def test_a_closed_server_hands_its_job_back(open_jobs: OpenJobs, folder: str) -> None:
    jobs = open_jobs()
    identity = jobs.submit("test.slow", {"folder": folder, "steps": 6, "seconds": 0.3})
    until(lambda: len(lines(folder)) >= 2)
    jobs.close()
    again = open_jobs(supervise=False)
    assert again.get(identity).state == "queued"
    again.supervise()
    assert again.wait(identity, 60).state == "succeeded"
    assert list(dict.fromkeys(lines(folder))) == [str(number) for number in range(6)]


def test_a_killed_worker_takes_its_heavy_step_along(open_jobs: OpenJobs, folder: str) -> None:
    jobs = open_jobs(supervise=False)
    worker = start_worker(jobs.settings.workspace)
    jobs.submit("test.heavy", {"how": "spin", "folder": folder})
    until(lambda: lines(folder, "pids"))
    child = int(lines(folder, "pids")[0])
    worker.kill()
    worker.wait()
    until(lambda: is_gone(child))
    assert is_gone(child)


def is_gone(process: int) -> bool:
    return not psutil.pid_exists(process) or psutil.Process(process).status() == psutil.STATUS_ZOMBIE


def test_a_job_that_always_kills_its_worker_fails(open_jobs: OpenJobs) -> None:
    jobs = open_jobs()
    job = jobs.wait(jobs.submit("test.die"), 90)
    assert job.state == "failed"
    assert job.error is not None
    assert "died 3 times" in job.error.what
    assert "worker.log" in job.error.fix


def test_an_idle_worker_leaves_and_a_new_one_comes(open_jobs: OpenJobs, folder: str) -> None:
    jobs = open_jobs(idle_seconds=0.3)
    assert jobs.wait(jobs.submit("test.count", {"folder": folder, "steps": 1}), 60).state == "succeeded"
    assert jobs.supervisor is not None
    until(lambda: jobs.supervisor is not None and jobs.supervisor.pids() == [])
    assert jobs.wait(jobs.submit("test.count", {"folder": folder, "steps": 1}), 60).state == "succeeded"


def test_a_frozen_worker_notices_that_it_was_given_up(open_jobs: OpenJobs, folder: str) -> None:
    jobs = open_jobs(supervise=False)
    worker = start_worker(jobs.settings.workspace)
    jobs.submit("test.slow", {"folder": folder, "steps": 1000, "seconds": 0.05})
    until(lambda: len(lines(folder)) >= 1)
    with jobs.database.session() as session:
        session.delete(session.scalars(select(WorkerRow)).one())
    assert worker.wait(timeout=60) == 3


@pytest.mark.parametrize("settings", [{"workers": 2}])
def test_two_workers_share_the_queue(open_jobs: OpenJobs, database_url: str, folder: str, settings: dict) -> None:  # type: ignore[type-arg]
    jobs = open_jobs(database_url, **settings)
    names = [f"job{number}" for number in range(8)]
    identities = [jobs.submit("test.order", {"folder": folder, "name": name}) for name in names]
    assert {jobs.wait(identity, 60).state for identity in identities} == {"succeeded"}
    assert sorted(lines(folder)) == names


def only_worker(jobs) -> WorkerRow:  # type: ignore[no-untyped-def]
    with jobs.database.session(read_only=True) as session:
        return session.scalars(select(WorkerRow)).one()


def start_worker(workspace: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "octavo.jobs.worker", "--workspace", str(workspace), "--modules", MODULE]
    return subprocess.Popen(command)


def start_server(workspace: Path) -> subprocess.Popen[bytes]:
    program = (
        "import sys, time, json; from octavo.jobs import Jobs; from octavo.settings import load_settings\n"
        "jobs = Jobs.open(load_settings(sys.argv[1]), modules=json.loads(sys.argv[2])); jobs.supervise()\n"
        "time.sleep(600)"
    )
    return subprocess.Popen([sys.executable, "-c", program, str(workspace), json.dumps([MODULE])])
