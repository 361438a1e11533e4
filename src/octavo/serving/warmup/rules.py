"""The rules of a workspace, kept as documents, so that they outlive the server and all servers follow the same ones."""

from __future__ import annotations

import asyncio
import logging

from octavo.errors import Conflict, NotFound, OctavoError
from octavo.serving.warmup.rule import WarmupRule, parse_rule
from octavo.storage.documents import Document, Documents

KIND = "warmup"
MOST = 1000
"""Rules of a workspace."""

log = logging.getLogger("octavo.serving.warmup")


class Rules:
    """Rules by name. Every method may raise `Unavailable` when the database does not answer."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    async def all(self) -> list[WarmupRule]:
        """All, by name; one that cannot be understood (a newer octavo wrote it) is left out, with a word in the log."""
        found: list[WarmupRule] = []
        for document in await asyncio.to_thread(self._documents.list, KIND):
            try:
                found.append(parse_rule(document.body))
            except OctavoError as error:
                log.warning("the warm-up rule %s is left out: %s", document.name, error)
        return found

    async def get(self, name: str) -> tuple[WarmupRule, Document]:
        """One.

        Raises:
            NotFound: there is none.
        """
        try:
            document = await asyncio.to_thread(self._documents.get, KIND, name)
        except NotFound:
            raise NotFound(f"there is no warm-up rule {name!r}", "", "See which there are: octavo warmup ls") from None
        return parse_rule(document.body), document

    async def put(self, rule: WarmupRule, revision: int | None = None) -> Document:
        """Write one, new or not; with `revision` only over that.

        Raises:
            Conflict: it was changed meanwhile, or there are too many.
        """
        names = {document.name for document in await asyncio.to_thread(self._documents.list, KIND)}
        if rule.name not in names and len(names) >= MOST:
            raise Conflict(
                f"there are {len(names)} warm-up rules", rule.name, "Remove one, or name more models in one."
            )
        body = rule.model_dump(mode="json")
        return await asyncio.to_thread(self._documents.put, KIND, rule.name, body, revision=revision)

    async def delete(self, name: str) -> None:
        """Remove one; what it loaded stays in memory until somebody needs the room.

        Raises:
            NotFound: there is none.
        """
        await asyncio.to_thread(self._documents.delete, KIND, name)
