"""What is declared of models, endpoint configurations and endpoints: documents, and what they say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from octavo.errors import Conflict, Invalid, NotFound
from octavo.serving.endpoint import Endpoint, Variant
from octavo.serving.packaging.deployment import Lease, Release
from octavo.storage.documents import Document, Documents

Status = Literal["Creating", "Updating", "InService", "Failed", "Deleting"]
IN_PROGRESS = ("Creating", "Updating", "Deleting")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Record(_Part):
    """A resource that has a name; `given` is the request that made it, for whoever asks what it was."""

    name: str
    given: dict[str, Any] = {}


class Container(_Part):
    """What a model runs, and on which data.

    Attributes:
        image: as given.
        source: `s3://...` or a path; a prefix or folder of archives when `multi`. Empty: `known` is asked.
        multi: requests name an archive below `source`.
        main: of an archive with several models, the one that clients ask.
        known: a model that is in the repository already.
    """

    image: str
    source: str = ""
    multi: bool = False
    main: str = ""
    known: str = ""


class ModelRecord(Record):
    """A model."""

    container: Container


class ConfigVariant(_Part):
    """A variant of an endpoint configuration.

    Attributes:
        model: name of a SageMaker model.
        weight: share of the traffic relative to the others'; of a shadow, in relation to the first that answers.
        count: instances wanted: the variant's replicas.
        given: as the request has it.
    """

    name: str
    model: str
    weight: float = Field(1.0, ge=0, le=1e6)
    count: int = Field(1, ge=0)
    shadow: bool = False
    given: dict[str, Any] = {}


class ConfigRecord(Record):
    """An endpoint configuration."""

    variants: tuple[ConfigVariant, ...]


class ServedVariant(ConfigVariant):
    """A variant of an endpoint: with what its model was when it was asked for, and the versions published of it."""

    container: Container
    release: Release | None = None


class Plan(_Part):
    """What an endpoint is to serve: the configuration it came from, and the variants."""

    config: str
    variants: tuple[ServedVariant, ...]

    @property
    def archives(self) -> str:
        """Where the archives lie that requests name; empty for an endpoint of other models."""
        return next((variant.container.source for variant in self.variants if variant.container.multi), "")

    def endpoint(self, name: str) -> Endpoint:
        """The endpoint of octavo's that serves it; every variant must have been published."""
        live = sum(variant.weight for variant in self.variants if not variant.shadow)
        return Endpoint(name=name, variants=tuple(_variant(variant, live) for variant in self.variants))


def _variant(variant: ServedVariant, live: float) -> Variant:
    release = variant.release
    if release is None:
        raise NotFound("the variant's model is not published", variant.name, "Update the endpoint.")
    weight = variant.weight
    if variant.shadow:  # SageMaker gives a shadow its weight in relation to the others', octavo a share of the requests
        weight = min(1.0, weight / live) if live else min(1.0, weight)
    return Variant(name=variant.name, model=release.main, version=release.version, weight=weight, shadow=variant.shadow)


class EndpointRecord(Record):
    """An endpoint.

    Attributes:
        status: in SageMaker's words.
        plan: what it serves; before it ever served anything, what it is to serve.
        next: what an update leads to.
        served: whether `plan` was in service.
        failure: why the last change failed; empty when it did not.
        lease: who works on it.
    """

    status: Status
    plan: Plan
    next: Plan | None = None
    served: bool = False
    failure: str = ""
    lease: Lease | None = None

    @property
    def left(self) -> bool:
        """Whether work was begun that nobody does any more."""
        return self.status in IN_PROGRESS and not (self.lease is not None and self.lease.held)


R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Stored(Generic[R]):
    """A record as it was when read."""

    record: R
    revision: int
    created: datetime
    updated: datetime


class Records(Generic[R]):
    """The records of one kind. Methods block for a query; all may raise `Unavailable`.

    Args:
        documents: of the workspace.
        kind: of document.
        title: of the resource, in SageMaker's messages.
        form: the records' class.
    """

    def __init__(self, documents: Documents, kind: str, title: str, form: type[R]) -> None:
        self._documents = documents
        self._kind = kind
        self._title = title
        self._form = form

    def get(self, name: str) -> Stored[R]:
        """One.

        Raises:
            NotFound: there is none; in the words that SageMaker's SDK looks for.
        """
        try:
            return self._read(self._documents.get(self._kind, name))
        except NotFound:
            raise NotFound(f'Could not find {self._title} "{name}"') from None

    def all(self) -> list[Stored[R]]:
        """Every one, by name."""
        return [self._read(document) for document in self._documents.list(self._kind)]

    def create(self, record: R) -> Stored[R]:
        """Add one.

        Raises:
            Invalid: there is one of that name; in the words that SageMaker's SDK looks for.
        """
        try:
            return self._read(self._documents.create(self._kind, record.name, record.model_dump(mode="json")))
        except Conflict:
            raise Invalid(f'Cannot create already existing {self._title} "{record.name}"') from None

    def write(self, record: R, revision: int) -> Stored[R]:
        """Write over a revision.

        Raises:
            Conflict: somebody else wrote meanwhile.
        """
        body = record.model_dump(mode="json")
        return self._read(self._documents.put(self._kind, record.name, body, revision=revision))

    def delete(self, name: str) -> None:
        """Remove one; raises as `get`."""
        try:
            self._documents.delete(self._kind, name)
        except NotFound:
            raise NotFound(f'Could not find {self._title} "{name}"') from None

    def _read(self, document: Document) -> Stored[R]:
        record = parse(self._form, document.body, document.name)
        return Stored(record, document.revision, document.created, document.updated)


P = TypeVar("P", bound=BaseModel)


def parse(form: type[P], given: Mapping[str, Any], where: str) -> P:
    """`given` in its form.

    Raises:
        Invalid: a wrong or missing field; names it.
    """
    try:
        return form.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:200]
        raise Invalid(f"{place}: {first['msg']}", where[:200]) from None
