"""Starting the server: be the only one on the workspace, take the port, then load what answers.

What can go wrong at once is looked at before anything heavy is imported.
"""

from __future__ import annotations

import errno
import logging
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from octavo.errors import Conflict, Invalid
from octavo.running import Running, only_one
from octavo.settings import Settings
from octavo.telemetry import start_logging

log = logging.getLogger("octavo.web")

_BACKLOG = 2048


def serve(settings: Settings, started: Callable[[Running, str | None], None] = lambda *_: None) -> None:
    """Serve until SIGINT or SIGTERM: finish what is in flight (10 s at most), close everything.

    Args:
        settings: of the workspace.
        started: called when requests are answered, with the server and, at the workspace's first start, the admin's
            token.

    Raises:
        Conflict: the workspace has a server, or the port is in use.
        OctavoError: something cannot be opened.
    """
    start_logging(settings.log_level)
    with only_one(settings), listening(settings.web.host, settings.web.port) as listener:
        _allow_connections(settings.web.max_connections)
        from octavo.web.lifecycle import live

        live(settings, listener, started)


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that is bound already, so that a port in use is told before anything is opened.

    Raises:
        Conflict: the port is in use.
        Invalid: no such address, or not allowed to use it.
    """
    where = f"{host}:{port}"
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError):
        raise Invalid("this machine does not know the address", host, "Set --host, such as 127.0.0.1.") from None
    with socket.socket(family, kind, proto) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(_BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                fix = "Choose another with --port; 0 takes a free one."
                raise Conflict("the port is in use by another program", where, fix) from None
            raise Invalid(f"cannot listen there: {error.strerror}", where, "Set --host and --port.") from None
        yield listener


def _allow_connections(most: int) -> None:
    """Raise this process's limit of open files as far as it may go: a connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most + 1024
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        log.warning("the system allows %d open files: fewer connections than web.max_connections", allowed)
