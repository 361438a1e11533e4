"""Which Ray cluster a fleet is on."""

from __future__ import annotations

from importlib.util import find_spec

from octavo.errors import Invalid, MissingExtra

LOCAL = "local"
"""A cluster of the server's own that only this machine can reach."""


def check_address(address: str) -> None:
    """Raise unless it is `local`, `auto` or HOST:PORT, and Ray is installed."""
    if find_spec("ray") is None:
        raise MissingExtra("Ray is not installed", "--ray", "Run: pip install 'octavo[ray]'")
    host, _, port = address.rpartition(":")
    if address not in (LOCAL, "auto") and not (host and "/" not in host and port.isdecimal()):
        what = f"not an address of a Ray cluster: {address!r:.100}"
        raise Invalid(what, "fleet.ray", "Use local, auto, or HOST:PORT of a cluster's head.")
