"""Kinds of jobs for the tests; workers import this file, by the folder on their PYTHONPATH."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from octavo.errors import Invalid
from octavo.jobs import Run, job, report


def _append(folder: str, name: str, text: str) -> None:
    with Path(folder, name).open("a") as file:
        file.write(text + "\n")


def _first_time(folder: str, name: str) -> bool:
    try:
        Path(folder, name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@job("test.count")
def count(run: Run, folder: str, steps: int = 3, die_in: list[int] = []) -> dict[str, Any]:  # noqa: B006
    """Each step writes a line. In steps of `die_in` the worker is killed the first time, before its line."""
    run.log("counting begins")
    total = 0
    for number in range(steps):
        total += run.step(f"number {number}", _count_one, folder, number, number in die_in)
        run.log(f"after {number}")
        run.progress((number + 1) / steps, f"{number + 1} of {steps}")
    return {"total": total, "attempt": run.attempt}


def _count_one(folder: str, number: int, die: bool) -> int:
    if die and _first_time(folder, f"died {number}"):
        os.kill(os.getpid(), signal.SIGKILL)
    _append(folder, "lines", str(number))
    return number


@job("test.slow")
def slow(run: Run, folder: str, steps: int, seconds: float) -> int:
    for number in range(steps):
        run.step(f"slow {number}", _slow_one, folder, number, seconds)
    return steps


def _slow_one(folder: str, number: int, seconds: float) -> None:
    _append(folder, "begun", str(number))
    time.sleep(seconds)
    _append(folder, "lines", str(number))


@job("test.fail_once")
def fail_once(run: Run, folder: str) -> str:
    run.step("first", _append, folder, "lines", "first")
    run.step("second", _fail_first_time, folder)
    run.log("second is done")
    run.step("third", _append, folder, "lines", "third")
    return "done"


def _fail_first_time(folder: str) -> None:
    if _first_time(folder, "failed"):
        raise ValueError("not this time")
    _append(folder, "lines", "second")


@job("test.raise")
def raises(run: Run, readable: bool = False) -> None:
    run.log("about to raise")
    if readable:
        raise Invalid("the film is upside down", "film 7", "Turn it.")
    raise RuntimeError("boom")


@job("test.exit")
def exits(run: Run) -> None:
    raise SystemExit(3)


@job("test.die")
def dies(run: Run) -> None:
    run.log("dying")
    os._exit(1)


@job("test.loop")
def loops(run: Run, folder: str) -> None:
    run.step("begin", _append, folder, "lines", "begun")
    while True:
        time.sleep(0.01)


@job("test.not_json")
def not_json(run: Run) -> object:
    return object()


@job("test.chatter")
def chatter(run: Run, lines: int) -> None:
    for number in range(lines):
        run.log(f"line {number}")


@job("test.heavy")
def heavy(run: Run, how: str = "square", value: int = 7, folder: str = "") -> Any:
    return run.heavy_step("compute", compute, how, value, folder)


def compute(how: str, value: int, folder: str) -> Any:
    if folder:
        _append(folder, "pids", str(os.getpid()))
    if how == "raise":
        raise Invalid("a bad value", str(value), "Another one.")
    if how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exit":
        raise SystemExit(5)
    if how == "spin":
        while True:
            pass
    report(None, "computing")
    report(0.5, "half")
    return {"square": value * value, "pid": os.getpid()}


@job("test.order")
def order(run: Run, folder: str, name: str) -> None:
    run.step("write", _append, folder, "lines", name)
