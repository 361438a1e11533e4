"""Warm-up: models that are in memory before anybody asks, by schedule or because a request is likely.

from octavo.serving.warmup import forecast, history_of

history = history_of([(hour, "acme-encoder"), ...], first=0, end=672, day=24)  # hours in which it was asked
forecast(history)["acme-encoder"]  # the probability of a request in hour 672
"""

from octavo.serving.warmup.history import History, history_of
from octavo.serving.warmup.plan import Plan, decide
from octavo.serving.warmup.prediction import forecast, frequency
from octavo.serving.warmup.rule import WarmupRule, parse_rule

__all__ = ["History", "Plan", "WarmupRule", "decide", "forecast", "frequency", "history_of", "parse_rule"]
