"""The endpoints of a workspace: kept as documents, looked up in memory.

Several processes may change them; each server looks again every few seconds, and at once after a change of its own.
"""

from __future__ import annotations

import asyncio
import logging

from octavo.errors import NotFound, OctavoError
from octavo.serving.endpoint import Endpoint, parse_endpoint
from octavo.storage.documents import Document, Documents

KIND = "endpoint"

log = logging.getLogger("octavo.serving.endpoints")


class Endpoints:
    """Endpoints by name. Made on the event loop that serves; `find` is a dictionary access.

    Every change may raise `Unavailable` when the database does not answer.
    """

    def __init__(self, documents: Documents) -> None:
        self._documents = documents
        self._known: dict[str, tuple[Endpoint, int]] = {}

    def find(self, name: str) -> Endpoint | None:
        """The endpoint of a name, or None."""
        known = self._known.get(name)
        return known[0] if known else None

    def all(self) -> list[Endpoint]:
        """All, by name."""
        return [self._known[name][0] for name in sorted(self._known)]

    async def get(self, name: str) -> tuple[Endpoint, Document]:
        """An endpoint as the database has it now.

        Raises:
            NotFound: there is none.
        """
        try:
            document = await asyncio.to_thread(self._documents.get, KIND, name)
        except NotFound:
            raise _missing(name) from None
        return parse_endpoint(document.body), document

    async def put(self, endpoint: Endpoint, revision: int | None = None) -> Document:
        """Write one, new or not; with `revision` only over that.

        Raises:
            Conflict: it was changed meanwhile.
        """
        body = endpoint.model_dump(mode="json")
        document = await asyncio.to_thread(self._documents.put, KIND, endpoint.name, body, revision=revision)
        await self.refresh()
        return document

    async def delete(self, name: str) -> None:
        """Remove one; its models stay.

        Raises:
            NotFound: there is none.
        """
        try:
            await asyncio.to_thread(self._documents.delete, KIND, name)
        except NotFound:
            raise _missing(name) from None
        await self.refresh()

    async def refresh(self) -> None:
        """Read all again; one that cannot be understood keeps its last form."""
        found: dict[str, tuple[Endpoint, int]] = {}
        for document in await asyncio.to_thread(self._documents.list, KIND):
            known = self._known.get(document.name)
            if known is not None and known[1] == document.revision:
                found[document.name] = known
                continue
            try:
                found[document.name] = (parse_endpoint(document.body), document.revision)
            except OctavoError as error:
                log.warning("the endpoint %s cannot be read: %s", document.name, error)
                if known is not None:
                    found[document.name] = known
        self._known = found

    async def watch(self, seconds: float) -> None:
        """Refresh for ever."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.refresh()
            except OctavoError as error:
                log.warning("the endpoints are as they were: %s", error)


def _missing(name: str) -> NotFound:
    return NotFound(f"there is no endpoint {name!r}", "", "See which there are: octavo endpoints ls")
