"""Which models were asked in which periods: what a forecast is made from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class History:
    """Periods of one length, one after the other without a gap.

    Attributes:
        models: names, in order.
        asked: bool [models, periods]; the last column is the newest period.
        day: periods of a day; 0 where a period is longer.
    """

    models: tuple[str, ...]
    asked: NDArray[np.bool_]
    day: int

    @property
    def periods(self) -> int:
        """How many."""
        return int(self.asked.shape[1])

    def until(self, period: int) -> History:
        """The periods before this one."""
        return History(self.models, self.asked[:, :period], self.day)


def history_of(asked: Iterable[tuple[int, str]], first: int, end: int, day: int) -> History:
    """A history from (number of a period, model asked in it), in any order; what lies outside is left out.

    Args:
        asked: periods by number; one may come more than once.
        first: the first period's number.
        end: that of the period after the last.
        day: periods of a day.
    """
    rows: dict[str, set[int]] = {}
    for period, model in asked:
        if first <= period < end:
            rows.setdefault(model, set()).add(period - first)
    models = tuple(sorted(rows))
    marks = np.zeros((len(models), max(0, end - first)), dtype=np.bool_)
    for at, model in enumerate(models):
        marks[at, sorted(rows[model])] = True
    return History(models, marks, day)
