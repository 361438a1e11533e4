"""Tags of resources, apart from their records: to tag an endpoint must not disturb who works on it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress

from octavo.errors import Invalid, NotFound
from octavo.serving.sagemaker.names import Kind
from octavo.storage.documents import Documents

_KIND = "sagemaker-tags"
MAX_TAGS = 50


class Tags:
    """Tags by resource. Methods block for a query; all may raise `Unavailable`."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    def of(self, kind: Kind, name: str) -> dict[str, str]:
        """A resource's, by key."""
        return self._read(kind, name)[0]

    def change(self, kind: Kind, name: str, add: Mapping[str, str], remove: Collection[str] = ()) -> dict[str, str]:
        """Add, replace or remove some; all that there are then.

        Raises:
            Invalid: too many.
            Conflict: somebody else changed them meanwhile.
        """
        present, revision = self._read(kind, name)
        wanted = {key: value for key, value in (present | dict(add)).items() if key not in remove}
        if len(wanted) > MAX_TAGS:
            raise Invalid(f"{len(wanted)} tags", f"{kind}/{name}", f"A resource has at most {MAX_TAGS}.")
        if wanted != present:
            self._documents.put(_KIND, f"{kind}/{name}", {"tags": wanted}, revision=revision)
        return wanted

    def forget(self, kind: Kind, name: str) -> None:
        """Remove those of a resource that goes."""
        with suppress(NotFound):
            self._documents.delete(_KIND, f"{kind}/{name}")

    def _read(self, kind: Kind, name: str) -> tuple[dict[str, str], int]:
        try:
            document = self._documents.get(_KIND, f"{kind}/{name}")
        except NotFound:
            return {}, 0
        return {str(key): str(value) for key, value in document.body.get("tags", {}).items()}, document.revision
