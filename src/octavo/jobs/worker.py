"""A worker process: runs queued jobs, leaves when there is nothing to do.

Start it with `python -m octavo.jobs.worker --workspace DIR --modules a.jobs,b.jobs`; the server's supervisor does.
Processes of heavy steps import this module anew, so it imports the heavy rest late.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence

from octavo.errors import OctavoError


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line of a worker process."""
    parser = argparse.ArgumentParser(prog="octavo.jobs.worker", description="Run the queued jobs of a workspace.")
    parser.add_argument("--workspace", help="The folder worked in.")
    parser.add_argument("--modules", default="", help="Modules that declare kinds of jobs, with commas.")
    options = parser.parse_args(arguments)
    from octavo.jobs.loop import Worker
    from octavo.settings import load_settings

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        worker = Worker(load_settings(options.workspace), [name for name in options.modules.split(",") if name])
    except OctavoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, worker.stop)
    return worker.main()


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a job handed back still runs in a thread; it must not hold the process
