"""Forecasts: rhythms are found, without one the plain frequency is as good, and odd pasts do no harm."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.serving.warmup import History, forecast, frequency, history_of

DAY, WEEK = 24, 168


def weeks_of(count: int = 4) -> History:
    """Weeks of hours: shops open from 8 to 18 on five days, a nightly job, a weekly one, and a hum without rhythm."""
    chance = np.random.default_rng(3)
    hours = np.arange(count * WEEK)
    hour, day = hours % DAY, hours // DAY % 7
    open_ = (hour >= 8) & (hour < 18) & (day < 5)
    rows = {f"shop{number}": open_ & (chance.random(len(hours)) < 0.9) for number in range(20)}
    rows["nightly"] = hour == 3
    rows["weekly"] = (hour == 6) & (day == 0)
    rows |= {f"hum{number}": chance.random(len(hours)) < 0.1 for number in range(10)}
    return History(tuple(rows), np.array(list(rows.values())), DAY)


def test_rhythms_of_days_and_weeks_are_found() -> None:
    history = weeks_of()
    monday = 3 * WEEK
    at = {hour: forecast(history.until(monday + hour)) for hour in (3, 6, 8, 20)}
    assert at[3]["nightly"] > 0.5 > at[8]["nightly"]
    assert at[6]["weekly"] > 5 * at[8]["weekly"]
    assert shops_of(at[8]) > 0.5 > 10 * shops_of(at[20])
    assert shops_of(forecast(history.until(monday + 5 * DAY + 8))) < 0.2, "a Saturday"


def shops_of(guess: dict[str, float]) -> float:
    """The mean over all shops."""
    return float(np.mean([chance for model, chance in guess.items() if model.startswith("shop")]))


def error(guess: dict[str, float], history: History, period: int) -> float:
    """Mean squared (Brier)."""
    asked = dict(zip(history.models, history.asked[:, period], strict=True))
    return float(np.mean([(guess[model] - asked[model]) ** 2 for model in history.models]))


def test_a_forecast_is_better_than_the_frequency_where_there_is_a_rhythm_and_as_good_where_there_is_none() -> None:
    history, later = weeks_of(), range(3 * WEEK, 4 * WEEK, 5)
    errors = {
        guess: np.mean([error(guess(history.until(period)), history, period) for period in later])
        for guess in (forecast, frequency)
    }
    assert errors[forecast] < errors[frequency] / 2
    hum = np.random.default_rng(5).random((50, 400)) < np.linspace(0.02, 0.9, 50)[:, None]
    steady = History(tuple(map(str, range(50))), hum, DAY)
    errors = {
        guess: np.mean([error(guess(steady.until(period)), steady, period) for period in range(300, 400, 5)])
        for guess in (forecast, frequency)
    }
    assert errors[forecast] < errors[frequency] * 1.05


def test_what_was_asked_once_is_no_rule() -> None:
    history = history_of([(9, "new"), *((period, "old") for period in range(10))], 0, 10, DAY)
    assert frequency(history)["new"] == 0
    assert frequency(history)["old"] > 0.9


def test_nothing_known_is_nothing_expected() -> None:
    assert forecast(history_of([], 0, 0, DAY)) == {}
    assert forecast(history_of([(0, "m")], 0, 1, DAY)) == {"m": 0.0}
    assert forecast(history_of([(5, "m"), (-1, "before"), (20, "after")], 0, 20, DAY)).keys() == {"m"}


@given(
    asked=st.lists(st.tuples(st.integers(0, 60), st.sampled_from("abcdef")), max_size=200),
    day=st.sampled_from([0, 1, 2, 7, 24]),
)
def test_every_past_gives_probabilities(asked: list[tuple[int, str]], day: int) -> None:
    history = history_of(asked, 0, 61, day)
    for guess in (forecast(history), frequency(history)):
        assert set(guess) == {model for _, model in asked}
        assert all(0 <= chance <= 1 for chance in guess.values())


@pytest.mark.parametrize("models", [1, 3])
def test_a_model_asked_always_is_expected(models: int) -> None:
    history = History(tuple(map(str, range(models))), np.ones((models, 100), dtype=np.bool_), DAY)
    assert all(chance > 0.9 for chance in forecast(history).values())
