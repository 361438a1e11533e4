"""How soon and how small: `import octavo`, `octavo --help`, and the memory of a server that does nothing yet.

python benchmarks/serving/startup.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from contenders import octavo_server
from harness import CACHE, CannotRun, Report, median, octavo_command, own_versions, run

ROUNDS = 11
LONGEST_START = 0.3  # seconds
LARGEST_IDLE = 200  # MiB
SETTLE = 10.0  # seconds an idle server is left alone before it is weighed


def timed(command: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of one command.

    Raises:
        CannotRun: it failed.
    """
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    wall, after = time.perf_counter() - start, os.times()
    if done.returncode:
        raise CannotRun(f"{' '.join(command)} failed: {done.stderr.strip()[-500:]}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, cpu


def starts() -> list[dict[str, Any]]:
    """Rounds of each command in turn; the first round fills the file cache and is thrown away."""
    commands = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "import octavo": [sys.executable, "-c", "import octavo"],
        "octavo --help": [*octavo_command(), "--help"],
    }
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for number in range(ROUNDS + 1):
        for name, command in commands.items():
            took = timed(command)
            if number:
                seen[name].append(took)
    return [
        {"what": name, "wall s": median([wall for wall, _ in took]), "CPU s": median([cpu for _, cpu in took])}
        for name, took in seen.items()
    ]


def idle_memory() -> dict[str, Any]:
    """Of a server on a fresh workspace, some seconds after it became ready."""
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        workspace = Path(folder) / "workspace"
        timed([*octavo_command(), "init", str(workspace)])
        with octavo_server(workspace) as (server, _):
            time.sleep(SETTLE)
            memory = server.memory()
    return {"what": "idle server, MiB", "PSS": memory.pss / 2**20, "RSS": memory.rss / 2**20}


def main() -> None:
    """Run everything."""
    CACHE.mkdir(exist_ok=True)
    report = Report("startup", "python benchmarks/serving/startup.py", versions=own_versions("octavo"))
    rows = starts()
    for row in rows[1:]:
        measured = f"{row['wall s']:.2f} s wall, {row['CPU s']:.2f} s CPU"
        report.bar(row["what"], f"<= {LONGEST_START} s", measured, row["wall s"] <= LONGEST_START)
    idle = idle_memory()
    report.bar("idle server, PSS", f"<= {LARGEST_IDLE} MiB", f"{idle['PSS']:.0f} MiB", idle["PSS"] <= LARGEST_IDLE)
    report.rows = [*rows, {"case": "memory", **idle}]
    report.notes.append(f"Medians of {ROUNDS} starts with files in the page cache; the interpreter's own start is in.")
    report.finish()


if __name__ == "__main__":
    run(main)
