"""The inside of a heavy step's own process."""

from __future__ import annotations

import ctypes
import faulthandler
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any

from octavo.jobs.reporting import listen

Task = tuple[Callable[..., Any], tuple[Any, ...], Mapping[str, Any]]

_PR_SET_PDEATHSIG = 1


def compute(pipe: Connection, payload: bytes, parent: int) -> None:
    """Run the pickled task; tell reports, then the result or the exception, through `pipe`."""
    os.setpgid(0, 0)
    _die_with(parent)
    faulthandler.enable()
    lock = threading.Lock()

    def tell(*message: object) -> None:
        with lock:
            pipe.send(message)

    listen(lambda fraction, text: tell("report", fraction, text))
    try:
        function, args, kwargs = pickle.loads(payload)
        tell("result", function(*args, **kwargs), "")
    except SystemExit as ending:
        tell("failed", f"the step called exit({ending.code!r})", "")
    except BaseException as error:
        trace = traceback.format_exc()
        _tell_error(tell, error, trace)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _tell_error(tell: Callable[..., None], error: BaseException, trace: str) -> None:
    try:
        pickle.loads(pickle.dumps(error))  # some exceptions pickle, but do not come back
        tell("failed", error, trace)
    except Exception:
        tell("failed", f"{type(error).__name__}: {error}", trace)


def _die_with(parent: int) -> None:
    """Be killed when the worker's thread that waits for us is gone, also by kill -9."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
