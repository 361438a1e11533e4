"""What a server expects of its models: how likely each is asked in an hour, and how long its cold start takes."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from octavo.serving.costs.table import UsageTable
from octavo.serving.costs.usage import HOUR
from octavo.serving.warmup.history import history_of
from octavo.serving.warmup.prediction import forecast
from octavo.serving.warmup.table import WarmupTable

WEEKS = 4
"""Of usage a forecast is made from."""

_DAY = 24  # hours
_LEARNED_DAYS = 30
_UNKNOWN_SECONDS = 1.0
_NEWEST = 0.3  # weight of a load in the mean of its model's


class Chances:
    """Forecasts from the usage in the database: made once for an hour, and again when that hour has begun."""

    def __init__(self, table: UsageTable) -> None:
        self._table = table
        self._made: dict[tuple[int, int], dict[str, float]] = {}

    async def of(self, hour: int, now: int) -> dict[str, float]:
        """The probability, by model, of a request within an hour.

        Args:
            hour: asked for; whole hours since 1970.
            now: the present one.

        Raises:
            Unavailable: the database does not answer.
        """
        if (hour, now) not in self._made:
            made = await asyncio.to_thread(self._forecast, hour)
            self._made = {key: chances for key, chances in self._made.items() if key[1] == now} | {(hour, now): made}
        return self._made[hour, now]

    def _forecast(self, hour: int) -> dict[str, float]:
        until = datetime.fromtimestamp(hour * HOUR, UTC)
        rows = self._table.hourly(until - timedelta(weeks=WEEKS), until)
        asked = [(int(at.timestamp() // HOUR), model) for at, model, amounts in rows if amounts.requests]
        first = min((number for number, _ in asked), default=hour)
        return forecast(history_of(asked, first, hour, _DAY))


class LoadTimes:
    """Seconds a model's cold start takes: a mean of its loads, the newest counting most. Used on the event loop."""

    def __init__(self) -> None:
        self._means: dict[str, float] = {}

    async def learn(self, table: WarmupTable, now: datetime) -> None:
        """Take over what earlier servers measured."""
        for _, model, amounts in await asyncio.to_thread(table.days, now - timedelta(days=_LEARNED_DAYS), now):
            if amounts.loads:
                self.see(model, amounts.load_seconds / amounts.loads)

    def see(self, model: str, seconds: float) -> None:
        """A load took so long."""
        mean = self._means.get(model, seconds)
        self._means[model] = mean + _NEWEST * (seconds - mean)

    def of(self, model: str) -> float:
        """Expected seconds; of a model that was never loaded, the mean of the others."""
        known = self._means.get(model)
        if known is None:
            known = sum(self._means.values()) / len(self._means) if self._means else _UNKNOWN_SECONDS
        return known
