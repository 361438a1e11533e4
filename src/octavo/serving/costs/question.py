"""What somebody asks of the costs: which time, by what, at which prices."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from octavo.errors import Invalid

BY = ("", "tenant", "model")

_SPAN = re.compile(r"(\d{1,6})([hdw])")
_LETTER = {"h": "hours", "d": "days", "w": "weeks"}
_FIX = "Write 24h, 7d or 4w, or a time such as 2026-01-31 or 2026-01-31T08:00."
_KNOWN = ("since", "by", "price", "instance_price")


@dataclass(frozen=True, slots=True)
class CostQuestion:
    """Usage is kept by the hour, so `since` counts from the beginning of its hour.

    Attributes:
        since: aware time; `until` is not included.
        by: "tenant", "model", or empty for a line per tenant and model.
        price: of one machine per hour.
        instance_price: per hour of the instance each model would have to itself.
    """

    since: datetime
    until: datetime
    by: str = ""
    price: float = 0.0
    instance_price: float = 0.0

    @property
    def first_hour(self) -> datetime:
        """The beginning of the first hour that counts."""
        return self.since.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def parse_question(given: Mapping[str, str], price: float, now: datetime) -> CostQuestion:
    """A question from outside: `since`, `by`, `price`, `instance_price`, all optional texts.

    Args:
        given: by name; empty texts count as left out.
        price: of this machine per hour, where none is given.
        now: aware; the end of the time asked for.

    Raises:
        Invalid: an unknown name, or a value that cannot be understood; names it.
    """
    for name in given:
        if name not in _KNOWN:
            raise Invalid(f"unknown parameter {name!r:.60}", "costs", f"There are {', '.join(_KNOWN)}.")
    by = given.get("by", "")
    if by not in BY:
        raise Invalid(f"cannot sum by {by!r:.60}", "by", "Use tenant or model.")
    asked = _price(given.get("price", ""), "price", price)
    instance = _price(given.get("instance_price", ""), "instance_price", asked)
    return CostQuestion(parse_since(given.get("since") or "7d", now), now, by, asked, instance)


def parse_since(text: str, now: datetime) -> datetime:
    """A time in the past from outside: 24h, 7d or 4w before `now`, or a date or time, in UTC unless it says.

    Raises:
        Invalid: neither.
    """
    match = _SPAN.fullmatch(text.strip())
    try:
        if match:
            return now - timedelta(**{_LETTER[match[2]]: int(match[1])})
        found = datetime.fromisoformat(text.strip())
        return found.replace(tzinfo=found.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Invalid(f"not a time: {text!r:.60}", "since", _FIX) from None


def _price(text: str, name: str, default: float) -> float:
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1e9:
        raise Invalid(f"not a price: {text!r:.60}", name, "Write an amount of money per hour, such as 0.192.")
    return value
