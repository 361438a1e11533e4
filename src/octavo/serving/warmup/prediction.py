"""How likely each model is to be asked in the next period, from the periods before.

Four looks at a model's past, each a mean of 0s and 1s: all periods since it was first asked, the last few (the newest
counts most), the same time of the days before, and of the same day of the weeks before. A logistic regression over all
models weighs them, fitted to the newest part of the past, so its answers are probabilities: where load has no rhythm
the plain frequency gets the weight, where it has one the same hour of the days and weeks before.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from octavo.serving.warmup.history import History

Floats = NDArray[np.float64]

_PRIOR: Final = 0.3
"""Of a period in which it was not asked, added to each mean: one hit is not yet a rule."""
_RECENT: Final = 12  # periods
_RECENT_HALF: Final = 1.0  # after so many periods a look counts half; of days and weeks likewise
_DAYS_HALF: Final = 3.0
_WEEKS_HALF: Final = 2.0
_WEEK: Final = 7  # days
_FITTED: Final = 168  # newest periods the regression is fitted to, at most
_ROWS: Final = 200_000  # of the fit, at most
_STEPS: Final = 20
_RIDGE: Final = 1.0


def frequency(history: History) -> dict[str, float]:
    """The plain guess: the share of periods in which a model was asked, since it was first asked."""
    return dict(zip(history.models, _often(history.asked).tolist(), strict=True))


def forecast(history: History) -> dict[str, float]:
    """The probability, by model, of a request in the period after the last of `history`.

    While there is too little to fit, this is `frequency`.
    """
    fitted = min(_FITTED, history.periods // 2, _ROWS // max(1, len(history.models)))
    if fitted < 1:
        return frequency(history)
    start = history.periods - fitted
    lags = tuple(lag for lag in (history.day, _WEEK * history.day) if 0 < lag <= start)
    rows, answers = [], []
    for period in range(start, history.periods):
        before = history.asked[:, :period]
        known = before.any(axis=1)
        rows.append(_looks(before, history.day, lags)[known])
        answers.append(history.asked[known, period])
    looks, asked = np.concatenate(rows), np.concatenate(answers).astype(np.float64)
    if asked.min(initial=1.0) == asked.max(initial=0.0) or not len(asked):
        return frequency(history)
    weights = _fit(looks, asked)
    found = _sigmoid(_looks(history.asked, history.day, lags) @ weights)
    return dict(zip(history.models, found.tolist(), strict=True))


def _looks(before: NDArray[np.bool_], day: int, lags: tuple[int, ...]) -> Floats:
    """What is known of each model: [models, 3 + lags], the first column being 1."""
    newest = before[:, : -_RECENT - 1 : -1]
    columns = [np.ones(len(before)), _often(before), _mean(newest, _RECENT_HALF)]
    for lag in lags:
        same_time = before[:, ::-1][:, lag - 1 :: lag]
        columns.append(_mean(same_time, _DAYS_HALF if lag == day else _WEEKS_HALF))
    return np.stack(columns, axis=1)


def _often(before: NDArray[np.bool_]) -> Floats:
    """The share of periods with a request after the first that had one; 0 where there is none.

    The first does not count: it is why the model is looked at, and says nothing of how often it comes again.
    """
    periods = before.shape[1]
    if not periods:
        return np.zeros(len(before))
    asked = before.sum(axis=1)
    since = np.where(asked > 0, periods - before.argmax(axis=1), 1)
    shares: Floats = np.maximum(asked - 1, 0) / (since - 1 + _PRIOR)
    return shares


def _mean(looks: NDArray[np.bool_], half: float) -> Floats:
    """The mean over the columns, newest first, whose weights halve every `half` columns."""
    weights = np.exp2(-np.arange(looks.shape[1]) / half)
    means: Floats = looks @ weights / (weights.sum() + _PRIOR)
    return means


def _fit(looks: Floats, asked: Floats) -> Floats:
    """Weights of a logistic regression with a small ridge on all but the first, by Newton's method."""
    ridge = np.full(looks.shape[1], _RIDGE)
    ridge[0] = 1e-6  # only so that the step can be solved for
    weights = np.zeros(looks.shape[1])
    for _ in range(_STEPS):
        chances = _sigmoid(looks @ weights)
        slope = looks.T @ (chances - asked) + ridge * weights
        curvature = (looks * (chances * (1 - chances))[:, None]).T @ looks + np.diag(ridge)
        step = np.linalg.solve(curvature, slope)
        weights -= np.clip(step, -5, 5)
        if np.abs(step).max() < 1e-6:
            break
    return weights


def _sigmoid(values: Floats) -> Floats:
    chances: Floats = 1 / (1 + np.exp(-np.clip(values, -30, 30)))
    return chances
