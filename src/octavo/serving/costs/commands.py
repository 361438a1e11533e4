"""The command-line door of the costs: `octavo costs`."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octavo.errors import Invalid
from octavo.printing import print_json, print_table
from octavo.serving.commands import AsJson, Workspace, find_server
from octavo.settings import existing_workspace
from octavo.storage.atomic import write_atomic

if TYPE_CHECKING:
    from octavo.serving.costs.report import CostReport
    from octavo.settings import Settings


def costs(
    since: Annotated[str, typer.Option(help="24h, 7d, 4w, or a time such as 2026-01-31.")] = "7d",
    by: Annotated[str, typer.Option(help="tenant or model; default: a line for each of both.")] = "",
    price: Annotated[str, typer.Option(help="Of the machine per hour; default: serving.machine_price.")] = "",
    instance_price: Annotated[str, typer.Option(help="Of one instance per model; default: as the machine.")] = "",
    csv: Annotated[Path | None, typer.Option(help="Write the lines into this file.")] = None,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """What models and tenants cost: memory, CPU, requests, cold starts, money, and the saving of sharing a machine."""
    if csv is not None and not csv.absolute().parent.is_dir():
        raise Invalid("there is no such folder", str(csv.absolute().parent), "Make it, or name another.")
    settings = existing_workspace(workspace)
    given = {"since": since, "by": by, "price": price, "instance_price": instance_price}
    report = _report(settings, given)
    if csv is not None:
        write_atomic(csv, report.csv().encode())
    if as_json:
        print_json(report.plain())
    elif csv is not None:
        rows = len(report.lines) + bool(report.idle)
        typer.echo(f"a line of titles and {rows} of amounts written to {csv}")
    else:
        _print(report, by)


def _report(settings: Settings, given: dict[str, str]) -> CostReport:
    """From the running server, whose last seconds are in it, or from the database."""
    from octavo.serving.costs import CostLine, CostReport, UsageTable, cost_report, parse_question
    from octavo.storage.database import Database

    question = parse_question(given, settings.serving.machine_price, datetime.now(UTC))
    client = find_server(settings)
    if client is not None:
        with client:
            told = client.costs(**given)
        return CostReport(**told | {"lines": tuple(CostLine(**line) for line in told["lines"])})
    database = Database(settings.database_url)
    try:
        database.upgrade()
        return cost_report(UsageTable(database), question)
    finally:
        database.close()


def _print(report: CostReport, by: str) -> None:
    if not report.lines:
        typer.echo(f"nothing was used since {report.since}; the machine was up for {report.hours:.2f} h")
        return
    titles = ["Tenant", "Model", "Requests", "Failures", "Cold", "CPU s", "GiB-h", "Money", "Alone", "Saved"]
    print_table(titles, [*_rows(report, by)])
    typer.echo(
        f"\n{report.hours:.2f} h at {report.price:g} an hour: {report.bill:.4f}, {report.idle:.4f} of it idle\n"
        f"an instance for each of {report.models} models: {report.alone:.4f}; "
        f"saved {report.saving:z.4f} ({report.saving_percent:z.1f} %)"
    )


def _rows(report: CostReport, by: str) -> Iterator[tuple[str, ...]]:
    from octavo.serving.costs.report import HOUSE_NAME

    for line in report.lines:
        yield (
            line.tenant or ("" if by == "model" else HOUSE_NAME),
            line.model,
            str(line.requests),
            str(line.failures or ""),
            str(line.cold_starts or ""),
            f"{line.cpu_seconds:.2f}",
            f"{line.memory_gib_hours:.4f}",
            f"{line.money:z.4f}",
            f"{line.alone_money:z.4f}",
            f"{line.saving:z.4f}",
        )
    if report.idle:
        yield ("(idle)", *[""] * 6, f"{report.idle:.4f}", "", "")
