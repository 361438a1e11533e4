"""How a version of a tenant's model did on examples it was asked about, and where that is remembered."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Final

from octavo.errors import OctavoError
from octavo.storage.documents import Documents

KIND: Final = "tenant-evaluation"

log = logging.getLogger("octavo.serving.tenants")


@dataclass(frozen=True)
class Evaluation:
    """How a tenant's model did.

    Attributes:
        accuracy: share of the in-scope texts given their category; None without such texts.
        oos_recall: share of the out-of-scope texts that were turned away; None without such texts.
        in_scope: how many texts have a category.
        out_of_scope: how many have none.
        unknown: categories of the texts that the model was not trained on, so that it never gives them.
    """

    accuracy: float | None
    oos_recall: float | None
    in_scope: int
    out_of_scope: int
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """The very version that was asked: a model may be removed, and another be version 1 of its name then.

    Attributes:
        model: its name.
        version: its number.
        digest: of the examples it was trained on.
    """

    model: str
    version: str
    digest: str


@dataclass(frozen=True)
class Remembered:
    """What was found, and when (UTC)."""

    found: Evaluation
    at: datetime


def remember_evaluation(documents: Documents, asked: Asked, found: Evaluation) -> None:
    """Keep it as the model's last one; without a database it is only not remembered."""
    body = asdict(found) | {"version": asked.version, "digest": asked.digest}
    try:
        documents.put(KIND, asked.model, body)
    except OctavoError as error:
        log.warning("the evaluation of %s is not remembered: %s", asked.model, error)


def evaluations(documents: Documents) -> dict[Asked, Remembered]:
    """The last one of each model, by what was asked.

    Raises:
        Unavailable: the database does not answer.
    """
    found = {}
    for document in documents.list(KIND):
        body = dict(document.body)
        asked = Asked(document.name, str(body.pop("version", "")), str(body.pop("digest", "")))
        try:
            evaluation = Evaluation(**body | {"unknown": tuple(body.get("unknown", ()))})
        except TypeError:  # written by another version of octavo
            log.warning("the evaluation of %s cannot be read", document.name)
            continue
        found[asked] = Remembered(evaluation, document.updated)
    return found
