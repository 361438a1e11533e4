"""The bill of a machine, shared out over who used it, beside what one instance per model would have cost.

The machine's bill is its price per hour times the hours it was up. A line pays for the mean of two shares: its
byte-seconds of the memory budget over that time, and its CPU-seconds of the cores. What nobody used is a line of its
own (idle), so all lines and idle are exactly the bill.

Without octavo each model has one instance to itself, for as long as any machine was up (so two machines that share the
models do not double it). A model's instance is shared out over its callers by their requests, or by their money where
there were none.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from octavo.serving.costs.question import CostQuestion
from octavo.serving.costs.table import UsageTable
from octavo.serving.costs.usage import HOUR, Capacity, Owner, Usage

HOUSE = ""
"""The tenant of what no request caused: pins, warm-ups, checks."""
HOUSE_NAME = "(house)"
"""What people read in its place."""

_GIB_HOUR = 2**30 * HOUR
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # their wide forms too


@dataclass(frozen=True, slots=True)
class CostLine:
    """What one tenant used of one model; a report by tenant or model leaves the other empty.

    `memory_gib_hours` is memory charged over time, `money` its part of the machine's bill, `alone_money` its part of
    one instance per model, `saving` the difference.
    """

    tenant: str
    model: str
    requests: int
    failures: int
    cold_starts: int
    cpu_seconds: float
    memory_gib_hours: float
    money: float
    alone_money: float
    saving: float


@dataclass(frozen=True, slots=True)
class CostReport:
    """A bill: `money` of all lines and `idle` are `bill`.

    `hours` are those the machines were up (of several machines, summed), `models` those that took memory or CPU,
    `alone` what an instance for each would have cost, `saving` what was saved against that (negative: lost), and
    `saving_percent` of it.
    """

    since: str
    until: str
    hours: float
    price: float
    instance_price: float
    lines: tuple[CostLine, ...]
    idle: float
    bill: float
    models: int
    alone: float
    saving: float
    saving_percent: float

    def of(self, tenant: str) -> CostReport:
        """The part of one tenant, without others' lines and what nobody used.

        Its amounts are shares of models that others may use too, so they tell how busy those are, not who asked.
        """
        lines = tuple(line for line in self.lines if line.tenant == tenant)
        bill, alone = sum(line.money for line in lines), sum(line.alone_money for line in lines)
        models = len({line.model for line in lines if line.money})
        return replace(self, lines=lines, idle=0.0, bill=bill, models=models, **_against(alone, bill))

    def by(self, by: str) -> CostReport:
        """Lines summed by "tenant" or "model"; empty: as they are."""
        if not by:
            return self
        summed: dict[str, list[CostLine]] = {}
        for line in self.lines:
            summed.setdefault(getattr(line, by), []).append(line)
        lines = [_sum(group, {"tenant": "", "model": "", by: name}) for name, group in summed.items()]
        return replace(self, lines=tuple(sorted(lines, key=_dearest)))

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def csv(self) -> str:
        """Lines with a title row, then a line `(idle)` where there is one."""
        written = io.StringIO()
        writer = csv.writer(written)
        titles = [field.name for field in fields(CostLine)]
        writer.writerow(titles)
        for line in self.lines:
            writer.writerow([_cell(getattr(line, title)) for title in titles])
        if self.idle:
            writer.writerow([{"tenant": "(idle)", "money": self.idle}.get(title, "") for title in titles])
        return written.getvalue()


def cost_report(table: UsageTable, question: CostQuestion, tenant: str | None = None) -> CostReport:
    """Read the usage and share out the bill; blocks for two queries.

    Args:
        table: the workspace's.
        question: which time, by what, at which prices.
        tenant: only this one's part; None for everything.

    Raises:
        Unavailable: the database does not answer.
    """
    since, until = question.first_hour, question.until
    report = share_out(table.usage(since, until), table.capacity(since, until), question)
    return (report if tenant is None else report.of(tenant)).by(question.by)


def share_out(usage: Sequence[tuple[Owner, Usage]], offered: Capacity, question: CostQuestion) -> CostReport:
    """The bill over these amounts, a line per tenant and model, the dearest first."""
    bill = question.price * offered.seconds / HOUR
    memory = max(offered.byte_seconds, sum(each.byte_seconds for _, each in usage))
    cpu = max(offered.core_seconds, sum(each.cpu_seconds for _, each in usage))

    def money(used: Usage) -> float:
        return bill * (_share(used.byte_seconds, memory) + _share(used.cpu_seconds, cpu)) / 2

    by_model: dict[str, dict[str, Usage]] = {}
    for (model, _, caller), used in usage:
        by_model.setdefault(model, {}).setdefault(caller, Usage()).add(used)
    instance = question.instance_price * offered.open_seconds / HOUR
    lines = [line for model, callers in by_model.items() for line in _lines_of(model, callers, money, instance)]
    models = sum(any(map(_took_something, callers.values())) for callers in by_model.values())
    return CostReport(
        since=question.first_hour.isoformat(),
        until=question.until.isoformat(),
        hours=offered.seconds / HOUR,
        price=question.price,
        instance_price=question.instance_price,
        lines=tuple(sorted(lines, key=_dearest)),
        idle=max(0.0, bill - sum(line.money for line in lines)),
        bill=bill,
        models=models,
        **_against(instance * models, bill),
    )


def _lines_of(
    model: str, callers: dict[str, Usage], money: Callable[[Usage], float], instance: float
) -> Iterable[CostLine]:
    """A line per caller of one model; a model that only passes requests on (an ensemble) needs no instance."""
    requests = sum(used.requests for used in callers.values())
    paid = sum(money(used) for used in callers.values())
    alone = instance if any(map(_took_something, callers.values())) else 0.0
    for caller, used in callers.items():
        part = _share(used.requests, requests) if requests else _share(money(used), paid)
        yield CostLine(
            tenant=caller,
            model=model,
            requests=used.requests,
            failures=used.failures,
            cold_starts=used.cold_starts,
            cpu_seconds=used.cpu_seconds,
            memory_gib_hours=used.byte_seconds / _GIB_HOUR,
            money=money(used),
            alone_money=alone * part,
            saving=alone * part - money(used),
        )


def _against(alone: float, bill: float) -> dict[str, Any]:
    return {"alone": alone, "saving": alone - bill, "saving_percent": 100 * _share(alone - bill, alone)}


def _took_something(used: Usage) -> bool:
    return used.byte_seconds > 0 or used.cpu_seconds > 0


def _sum(lines: Sequence[CostLine], names: dict[str, Any]) -> CostLine:
    amounts = [field.name for field in fields(CostLine) if field.name not in names]
    sums: dict[str, Any] = {name: sum(getattr(line, name) for line in lines) for name in amounts}
    return CostLine(**sums, **names)


def _dearest(line: CostLine) -> tuple[float, str, str]:
    return -line.money, line.tenant, line.model


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _cell(value: object) -> object:
    """A spreadsheet takes a text that begins like a formula for one; a quote before it keeps it a text."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
