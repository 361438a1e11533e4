"""A recorded load: a CSV file with a request a line, `t_s,tenant,model_kind,n_tokens`."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from octavo.errors import Invalid, TooLarge

COLUMNS = ("t_s", "tenant", "model_kind", "n_tokens")
MAX_REQUESTS = 5_000_000
MAX_BYTES = 2**30
MAX_SECONDS = 31 * 24 * 3600.0
_FORM = f"The columns are {','.join(COLUMNS)}; t_s is in seconds from the start and never falls."


@dataclass(frozen=True, slots=True)
class Call:
    """One request; `at` in seconds from the trace's start. A tenant has one model of a kind."""

    at: float
    tenant: str
    kind: str
    tokens: int

    @property
    def model(self) -> tuple[str, str]:
        """The model asked: tenant and kind."""
        return self.tenant, self.kind


def read_trace(file: Path, name: str = "") -> list[Call]:
    """The requests of a trace, in order.

    Args:
        file: to read.
        name: what is said of it when something is wrong; the path by default.

    Raises:
        Invalid: the file cannot be read, or a row is wrong; names its line.
        TooLarge: more than `MAX_REQUESTS` rows or `MAX_BYTES`.
    """
    where = name or str(file)
    if not file.is_file():
        raise Invalid("cannot be read: there is no such file", where, "Name a trace file.")
    if file.stat().st_size > MAX_BYTES:
        raise TooLarge(f"more than {MAX_BYTES} bytes", where, "Replay a shorter part.")
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            calls = _calls(csv.DictReader(stream), where)
    except OSError as error:
        raise Invalid(f"cannot be read: {error.strerror}", where, "Name a trace file.") from None
    except UnicodeDecodeError:
        raise Invalid("not UTF-8 text", where, _FORM) from None
    except csv.Error as error:
        raise Invalid(f"not CSV: {error}", where, _FORM) from None
    if not calls:
        raise Invalid("a trace without a request", where, _FORM)
    return calls


def _calls(rows: csv.DictReader[str], where: str) -> list[Call]:
    missing = [name for name in COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise Invalid(f"no column {', '.join(missing)}", f"{where}, line 1", _FORM)
    calls: list[Call] = []
    for row in rows:
        place = f"{where}, line {rows.line_num}"
        call = _call(row, place)
        if calls and call.at < calls[-1].at:
            raise Invalid(f"t_s {call.at:g} is before {calls[-1].at:g} of the row above", place, _FORM)
        if len(calls) >= MAX_REQUESTS:
            raise TooLarge(f"more than {MAX_REQUESTS} requests", place, "Replay a shorter part.")
        calls.append(call)
    return calls


def _call(row: Mapping[str, str | None], place: str) -> Call:
    if any(row[name] is None for name in COLUMNS) or None in _keys(row):
        raise Invalid("too few or too many cells", place, _FORM)
    tenant, kind = row["tenant"] or "", row["model_kind"] or ""
    if not tenant or not kind:
        raise Invalid("no tenant or model_kind", place, _FORM)
    at = _number(row["t_s"] or "", "t_s", place)
    tokens = _number(row["n_tokens"] or "", "n_tokens", place)
    if at > MAX_SECONDS:
        raise Invalid(f"t_s {at:g} is over {MAX_SECONDS:.0f}", place, "Replay a month at most.")
    if not tokens.is_integer():
        raise Invalid(f"n_tokens is not a whole number: {tokens:g}", place, _FORM)
    return Call(at, tenant, kind, int(tokens))


def _keys(row: Mapping[str, str | None]) -> Iterable[str | None]:
    """The columns; None among them (the cells past the last column) is how `csv` tells of a row too long."""
    return row.keys()


def _number(text: str, column: str, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise Invalid(f"{column} is not a number: {text[:50]!r}", place, _FORM) from None
    if not math.isfinite(value) or value < 0:
        raise Invalid(f"{column} is not 0 or more: {text[:50]!r}", place, _FORM)
    return value
