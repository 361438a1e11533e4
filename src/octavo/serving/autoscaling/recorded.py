"""A trace out of what this server was asked: its usage per hour, spread evenly within each hour."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from octavo.errors import Invalid, TooLarge
from octavo.serving.autoscaling.trace import Call
from octavo.serving.costs.usage import HOUR, Usage

MAX_RECORDED = 1_000_000
"""Requests of a trace that is made in memory."""


def recorded_calls(hours: Sequence[tuple[datetime, str, Usage]]) -> list[Call]:
    """The requests of these hours, in order; each model is a kind of its own.

    Args:
        hours: sums by hour and model, the oldest first; time 0 is the beginning of the first.

    Raises:
        Invalid: nothing was asked in them.
        TooLarge: more than `MAX_RECORDED` requests.
    """
    asked = [(hour, model, usage.requests) for hour, model, usage in hours if usage.requests]
    if not asked:
        raise Invalid("nothing was asked in this time", "recorded usage", "Choose a longer one, or send a trace.")
    total = sum(requests for _, _, requests in asked)
    if total > MAX_RECORDED:
        raise TooLarge(f"{total:,} requests are recorded", "recorded usage", f"Choose a time with {MAX_RECORDED:,}.")
    start = asked[0][0]
    calls = [
        Call((hour - start).total_seconds() + (at + 0.5) * HOUR / requests, "", model, 0)
        for hour, model, requests in asked
        for at in range(requests)
    ]
    return sorted(calls, key=lambda call: call.at)
