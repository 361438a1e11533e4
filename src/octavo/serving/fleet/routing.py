"""Which replica a request goes to: where its model is, else where its name belongs, else where there is time.

A model that is nowhere goes to the replica that its name and the replica's give the lowest hash (rendezvous hashing):
many requests at once load it at one place, and when a replica comes or goes only its own part of the models moves. When
that place is busy, another replica loads the model too, which is how hot models get copies.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from hashlib import blake2b
from typing import Protocol, TypeVar


class Place(Protocol):
    """A replica as routing sees it.

    Attributes:
        id: what its hashes are made of.
        keys: `name/version` of the models in its memory or on their way in.
        in_flight: requests sent to it and not answered yet.
    """

    @property
    def id(self) -> str: ...
    @property
    def keys(self) -> Collection[str]: ...
    @property
    def in_flight(self) -> int: ...


P = TypeVar("P", bound=Place)


def choose(name: str, version: str, places: Sequence[P], spill_at: int) -> P:
    """The place for a request.

    Args:
        name: of the model.
        version: the one that will answer.
        places: those that take requests; at least one.
        spill_at: requests in flight from which a place is busy. One that has no more than half of a busy place's
            requests is given the model too.
    """
    holders = _holders(name, version, places)
    best = min(holders, key=lambda place: (place.in_flight, _rank(name, place))) if holders else home(name, places)
    if best.in_flight < spill_at:
        return best
    idle = [place for place in places if place not in holders and place.in_flight * 2 <= best.in_flight]
    return home(name, idle) if idle else best


def home(name: str, places: Sequence[P]) -> P:
    """Where a model that is nowhere belongs."""
    return min(places, key=lambda place: _rank(name, place))


def _holders(name: str, version: str, places: Sequence[P]) -> list[P]:
    """Those that hold the version, else those that hold another: that one answers until the new one is in memory."""
    key = f"{name}/{version}"
    holders = [place for place in places if key in place.keys]
    if holders:
        return holders
    prefix = f"{name}/"
    return [place for place in places if any(key.startswith(prefix) for key in place.keys)]


def _rank(name: str, place: Place) -> bytes:
    return blake2b(f"{place.id}\0{name}".encode(), digest_size=8).digest()
