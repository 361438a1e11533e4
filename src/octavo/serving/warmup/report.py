"""What warming up has saved: a line per day and model, and sums."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from octavo.errors import Invalid
from octavo.serving.costs.question import parse_since
from octavo.serving.warmup.ledger import Warmups
from octavo.serving.warmup.table import WarmupTable

BY = ("", "model", "day")


@dataclass(frozen=True, slots=True)
class WarmupLine:
    """One model on one day; a report by model or by day leaves the other empty. See `Warmups` for the amounts."""

    day: str
    model: str
    loads: int
    avoided: int
    wasted: int
    load_seconds: float
    seconds_saved: float


@dataclass(frozen=True, slots=True)
class WarmupReport:
    """Lines, and the sums over all of them."""

    since: str
    until: str
    lines: tuple[WarmupLine, ...]
    loads: int
    avoided: int
    wasted: int
    load_seconds: float
    seconds_saved: float

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def warmup_report(
    table: WarmupTable, given: Mapping[str, str], now: datetime, visible: Callable[[str], bool] | None = None
) -> WarmupReport:
    """Read the rows; blocks for a query.

    Args:
        table: the workspace's.
        given: `since` (24h, 7d, 4w or a time; 7d unless said) and `by` ("model" or "day"), from outside.
        now: aware.
        visible: whether the report is to tell of a model; None: of all.

    Raises:
        Invalid: an unknown name, or a value that cannot be understood; names it.
        Unavailable: the database does not answer.
    """
    for name in given:
        if name not in ("since", "by"):
            raise Invalid(f"unknown parameter {name!r:.60}", "warmup report", "There are since, by.")
    by = given.get("by", "")
    if by not in BY:
        raise Invalid(f"cannot sum by {by!r:.60}", "by", "Use model or day.")
    since = (
        parse_since(given.get("since") or "7d", now).astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    )
    rows = [
        (day.date().isoformat() if by != "model" else "", model if by != "day" else "", amounts)
        for day, model, amounts in table.days(since, now)
        if visible is None or visible(model)
    ]
    return _report(since, now, rows)


def _report(since: datetime, until: datetime, rows: Iterable[tuple[str, str, Warmups]]) -> WarmupReport:
    lines: dict[tuple[str, str], Warmups] = {}
    whole = Warmups()
    for day, model, amounts in rows:
        lines.setdefault((day, model), Warmups()).add(amounts)
        whole.add(amounts)
    return WarmupReport(
        since=since.isoformat(),
        until=until.isoformat(),
        lines=tuple(WarmupLine(day, model, **_amounts(line)) for (day, model), line in sorted(lines.items())),
        **_amounts(whole),
    )


def _amounts(line: Warmups) -> dict[str, Any]:
    return {field.name: getattr(line, field.name) for field in fields(Warmups)}
