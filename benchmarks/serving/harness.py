"""What every benchmark shares: servers as processes, their CPU and memory, versions, tables and result files.

CPU time is the yardstick: user plus system time of a server's whole process tree, from /proc. It moves by 5-15 % on a
busy machine where wall time moves by factors. Capacity is cores divided by CPU time per request.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
CACHE = ROOT / ".venv-peers"
DATA = ROOT.parent / "shared" / "data" / "serve"
CORES = len(os.sched_getaffinity(0))
_TICK = os.sysconf("SC_CLK_TCK")


class CannotRun(Exception):
    """Something a benchmark needs is not there; the message says what."""


@dataclass(frozen=True)
class Memory:
    """Of a process tree, bytes."""

    pss: int
    rss: int
    uss: int


class Server:
    """A server process with its children; its output goes to a log file.

    Args:
        name: for messages and the log's name.
        command: with arguments.
        environment: added to this process's own.
        folder: working directory and place of the log.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.log = folder / f"{name}.log"
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=os.environ | dict(environment),
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The root of the process tree."""
        return self._process.pid

    def wait_until_ready(self, url: str, timeout: float = 90.0) -> None:
        """Until `url` answers 200.

        Raises:
            CannotRun: the process ended or the time passed; carries the end of its log.
        """
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(urllib.error.URLError, OSError), urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
            time.sleep(0.2)
        code = self._process.poll()
        state = f"ended with code {code}" if code is not None else f"not ready after {timeout:.0f} s"
        self.stop()
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        raise CannotRun(f"{self.name} {state}. End of its log ({self.log}):\n{tail}")

    def cpu_seconds(self) -> float:
        """User and system time of the tree since it started, children that have ended included."""
        return tree_cpu_seconds(self.pid)

    def memory(self) -> Memory:
        """Of the tree now."""
        return tree_memory(self.pid)

    def stop(self) -> None:
        """Ask it to end; after 15 s end the whole group."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(15)
        with contextlib.suppress(ProcessLookupError):  # all of the group have ended already
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()


def _tree(pid: int) -> list[int]:
    root = psutil.Process(pid)
    return [pid, *(child.pid for child in root.children(recursive=True))]


def tree_cpu_seconds(pid: int) -> float:
    """User and system time of a process tree, with the children each process has waited for."""
    total = 0
    for member in _tree(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # ended between listing and reading
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            total += sum(int(ticks) for ticks in fields[11:15])
    return total / _TICK


def tree_memory(pid: int) -> Memory:
    """Memory of a process tree; shared pages count once in PSS when only the tree maps them."""
    totals = dict.fromkeys(("Pss", "Rss", "Private_Clean", "Private_Dirty"), 0)
    for member in _tree(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            for line in Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()[1:]:
                key, _, value = line.partition(":")
                if key in totals:
                    totals[key] += int(value.split()[0]) * 1024
    return Memory(totals["Pss"], totals["Rss"], totals["Private_Clean"] + totals["Private_Dirty"])


def free_port() -> int:
    """A TCP port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of the values lie, nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return statistics.median(values)


@dataclass
class Bar:
    """A claim, the bar it has to clear and what was measured; without a bar, `holds` is None."""

    claim: str
    bar: str
    measured: str
    holds: bool | None


@dataclass
class Report:
    """What one benchmark found; printed as tables and written as JSON."""

    name: str
    command: str
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def bar(self, claim: str, bar: str, measured: str, holds: bool) -> None:
        """Add one claim's outcome."""
        self.bars.append(Bar(claim, bar, measured, bool(holds)))

    def tell(self, claim: str, measured: str) -> None:
        """Add a figure that has no bar and belongs beside one that has."""
        self.bars.append(Bar(claim, "", measured, None))

    def finish(self, *, write: bool = True) -> None:
        """Print everything; `write` it to `benchmarks/results/<name>.json` too (not when only a part was measured)."""
        console = Console(width=max(130, Console().width))
        groups = dict.fromkeys(str(row.get("case", self.name)) for row in self.rows)
        for group in groups:
            print_rows(console, group, [row for row in self.rows if str(row.get("case", self.name)) == group])
        for note in self.notes:
            console.print(f"- {note}", highlight=False, markup=False)
        console.print(", ".join(f"{name} {number}" for name, number in self.versions.items()), highlight=False)
        for bar in self.bars:
            if bar.holds is None:
                console.print(f"       {bar.claim}: {bar.measured}", highlight=False)
                continue
            mark = "[green]holds[/]" if bar.holds else "[red]fails[/]"
            console.print(f"{mark}  {bar.claim}: {bar.measured} (bar: {bar.bar})", highlight=False)
        if not write:
            return
        RESULTS.mkdir(parents=True, exist_ok=True)
        file = RESULTS / f"{self.name}.json"
        file.write_text(json.dumps({"machine": machine(), **asdict(self)}, indent=1) + "\n")
        console.print(f"written to {file.relative_to(ROOT)}", highlight=False)


def print_rows(console: Console, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table whose columns are the keys of the rows, but the case (its title) and the single rounds."""
    table = Table(title=title, title_justify="left")
    columns = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in ("case", "rounds")]
    for column in columns:
        table.add_column(column, justify="left" if isinstance(rows[0].get(column), str) else "right")
    for row in rows:
        table.add_row(*(_text(row.get(column)) for column in columns))
    console.print(table)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return "-" if value is None else str(value)


def machine() -> dict[str, Any]:
    """Where and when this was measured."""
    with Path("/proc/cpuinfo").open() as lines:
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "cpu": model,
        "cores": CORES,
        "python": platform.python_version(),
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "when": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }


def own_versions(*packages: str) -> dict[str, str]:
    """Versions of packages of this environment."""
    found = {}
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def run(main: Callable[[], None]) -> None:
    """Run a script; what it needs and does not find is one line and exit code 2."""
    try:
        main()
    except CannotRun as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)


def octavo_command() -> list[str]:
    """The `octavo` command of this environment."""
    command = Path(sys.executable).parent / "octavo"
    if not command.exists():
        raise CannotRun(f"no octavo command beside {sys.executable}; install the package there first")
    return [str(command)]
