"""Lists as AWS gives them: filtered, in order, and in pages whose token says after what the next begins."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from pydantic import Field

from octavo.errors import Invalid
from octavo.serving.protocols.aws_json import Form, WrongToken

MAX_TOKEN = 2048


class PageForm(Form):
    """Which page of a list."""

    max_results: int | None = Field(None, ge=1, le=100)
    next_token: str = Field("", max_length=MAX_TOKEN)


class ListForm(PageForm):
    """What every list of SageMaker's can be asked; times in seconds since 1970."""

    name_contains: str = Field("", max_length=63)
    sort_by: Literal["Name", "CreationTime", "Status"] = "CreationTime"
    sort_order: Literal["Ascending", "Descending"] = "Descending"
    status_equals: str = ""
    creation_time_before: float | None = None
    creation_time_after: float | None = None
    last_modified_time_before: float | None = None
    last_modified_time_after: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One of a list: what it can be filtered and ordered by, and how it is shown; times in seconds since 1970."""

    name: str
    created: float
    modified: float
    shown: Mapping[str, Any]
    status: str = ""


def listed(rows: Iterable[Row], asked: ListForm, key: str) -> dict[str, Any]:
    """An answer with a page of the rows under `key`.

    Raises:
        WrongToken: the token is of no such list.
    """
    found = [row for row in rows if _wanted(row, asked)]
    by: Callable[[Row], Any] = {
        "Name": lambda row: row.name,
        "CreationTime": lambda row: row.created,
        "Status": lambda row: row.status,
    }[asked.sort_by]
    return paged(found, asked, key, by, descending=asked.sort_order == "Descending", usual=10)


def _wanted(row: Row, asked: ListForm) -> bool:
    if asked.name_contains.lower() not in row.name.lower() or asked.status_equals not in ("", row.status):
        return False
    return _between(row.created, asked.creation_time_after, asked.creation_time_before) and _between(
        row.modified, asked.last_modified_time_after, asked.last_modified_time_before
    )


def _between(moment: float, after: float | None, before: float | None) -> bool:
    return (after is None or moment > after) and (before is None or moment < before)


def paged(
    rows: Iterable[Row],
    asked: PageForm,
    key: str,
    by: Callable[[Row], Any] = lambda row: row.name,
    *,
    descending: bool = False,
    usual: int = 50,
) -> dict[str, Any]:
    """An answer with a page of rows in order.

    Args:
        rows: all of them.
        asked: which page.
        key: the member that holds it.
        by: what they are ordered by, then by name.
        descending: the largest first.
        usual: rows of a page whose size is not asked for.

    Raises:
        WrongToken: the token is of no such list.
    """
    ordered = sorted(((by(row), row.name, row) for row in rows), key=lambda one: one[:2], reverse=descending)
    if asked.next_token:
        last = _position(asked.next_token)
        try:
            ordered = [one for one in ordered if (one[:2] < last if descending else one[:2] > last)]
        except TypeError:
            raise _wrong_token() from None
    most = asked.max_results or usual
    told: dict[str, Any] = {key: [row.shown for _, _, row in ordered[:most]]}
    if len(ordered) > most:
        value, name, _ = ordered[most - 1]
        told["NextToken"] = base64.urlsafe_b64encode(orjson.dumps([value, name])).decode()
    return told


def _position(token: str) -> tuple[Any, str]:
    try:
        value, name = orjson.loads(base64.b64decode(token.encode(), b"-_", validate=True))
    except (ValueError, TypeError, binascii.Error):
        raise _wrong_token() from None
    if type(value) not in (str, int, float) or not isinstance(name, str):
        raise _wrong_token()
    return value, name


def _wrong_token() -> Invalid:
    return WrongToken("the token is of no list", "NextToken", "Send the one of the last answer, unchanged.")
