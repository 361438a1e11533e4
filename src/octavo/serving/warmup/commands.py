"""The command-line door of the warm-up: `octavo warmup ...`; rules are those of a running server, and count at once."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.errors import Invalid
from octavo.printing import print_json, print_table, say
from octavo.serving.commands import AsJson, Workspace, find_server, server
from octavo.settings import existing_workspace

if TYPE_CHECKING:
    from octavo.serving.client import Client
    from octavo.serving.warmup.simulation import Simulation
    from octavo.settings import Settings

app = typer.Typer(help="Warm-up: models in memory before they are asked for.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of the rule.")]

_MIB = 2**20


@app.command("ls")
def list_rules(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """List the rules."""
    with server(workspace) as client:
        rows = client.warmup_rules()
    if as_json:
        print_json(rows)
    elif not rows:
        typer.echo("there are no rules; make one: octavo warmup add NAME --model MODEL")
    else:
        print_table(["Rule", "Models", "When"], [(row["name"], _few(row["models"]), _when(row)) for row in rows])


@app.command()
def add(
    name: Name,
    model: Annotated[
        list[str] | None,
        typer.Option(help="A model or endpoint, or a pattern with *; may come again. With --predict: all."),
    ] = None,
    cron: Annotated[str | None, typer.Option(help="When, as '0 8 * * 1-5'.", show_default="0 * * * *")] = None,
    keep: Annotated[int | None, typer.Option(help="Minutes to keep them from then on.", show_default="60")] = None,
    timezone: Annotated[str | None, typer.Option(help="Of the cron expression.", show_default="UTC")] = None,
    lead: Annotated[int | None, typer.Option(help="Minutes before, to begin loading.", show_default="5")] = None,
    predict: Annotated[bool, typer.Option("--predict", help="Those likely to be asked, from usage so far.")] = False,
    probability: Annotated[
        float | None, typer.Option(help="With --predict: of a request in the hour, at least.", show_default="0.05")
    ] = None,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Make a rule, or change one: keep models in memory at set times, or load them when a request is likely."""
    from octavo.serving.warmup.rule import parse_rule

    if predict and any(given is not None for given in (cron, keep, timezone)):
        raise Invalid("--predict has no schedule", "octavo warmup add", "Leave --cron, --keep and --timezone out.")
    if not predict and probability is not None:
        raise Invalid("a schedule has no --probability", "octavo warmup add", "Leave it out, or add --predict.")
    given = {
        "models": model,
        "cron": cron,
        "keep_minutes": keep,
        "timezone": timezone,
        "lead_minutes": lead,
        "probability": probability,
    }
    said = {field: value for field, value in given.items() if value is not None}
    wanted = parse_rule({"name": name, "predict": predict} | said)
    if not predict and not model:
        raise Invalid("a schedule needs --model", "octavo warmup add", "Name models, or add --predict.")
    with server(workspace) as client:
        found = client.set_warmup_rule(name, wanted.model_dump(mode="json"))
        missing = _missing(client, model or [])
    if missing:
        typer.echo(f"note: no model or endpoint is called {_few(missing)} now; see octavo models ls", err=True)
    say(as_json, found, f"{name}: {_few(found['models'])}, {_when(found)}")


@app.command()
def rm(name: Name, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Take a rule away; what it loaded stays until somebody needs the room."""
    with server(workspace) as client:
        client.remove_warmup_rule(name)
    say(as_json, {"name": name, "removed": True}, f"the rule {name} is gone")


@app.command()
def plan(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Show what the rules would load now, and why not the rest."""
    with server(workspace) as client:
        found = client.warmup_plan()
    if as_json:
        print_json(found)
    elif not found["steps"]:
        typer.echo("the rules want nothing now")
    else:
        print_table(["Model", "Probability", "Saves s", "MiB", "What"], [_step(step) for step in found["steps"]])


@app.command()
def report(
    since: Annotated[str, typer.Option(help="24h, 7d, 4w, or a time such as 2026-01-31.")] = "7d",
    by: Annotated[str, typer.Option(help="model or day; default: a line for each of both.")] = "",
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Show the cold starts that were avoided, and what that took."""
    found = _report(existing_workspace(workspace), {"since": since, "by": by})
    if as_json:
        print_json(found)
        return
    if found["lines"]:
        titles = ["Day", "Model", "Avoided", "Seconds saved", "Loads ahead", "Wasted", "Load seconds"]
        print_table(titles, [_line(line) for line in found["lines"]])
    typer.echo(
        f"{found['avoided']} cold starts avoided, {found['seconds_saved']:.2f} s saved; "
        f"{found['loads']} loads ahead, {found['wasted']} of them for nothing"
    )


@app.command("simulate")
def simulate_trace(
    trace: Annotated[Path, typer.Argument(help="CSV file: t_s,tenant,model_kind,n_tokens.", show_default=False)],
    memory_gib: Annotated[float, typer.Option(min=0.001, max=1e6, help="Memory for models.")] = 8.0,
    period: Annotated[float, typer.Option(min=1, max=86400, help="Seconds that each look ahead covers.")] = 3600.0,
    model: Annotated[list[str] | None, typer.Option(help="A kind's size: KIND=MiB.", show_default=False)] = None,
    model_mib: Annotated[float, typer.Option(min=0.001, max=2**30, help="Size of models of other kinds.")] = 100.0,
    load_seconds: Annotated[float, typer.Option(min=0, max=86400, help="A cold start.")] = 1.0,
    probability: Annotated[float, typer.Option(min=0.001, max=1, help="From which on a model is loaded.")] = 0.05,
    share: Annotated[float, typer.Option(min=0, max=1, help="Of the memory, for models loaded ahead.")] = 0.25,
    held_out: Annotated[float, typer.Option(min=0.01, max=0.99, help="Last part, in which is counted.")] = 0.5,
    unload_idle: Annotated[float, typer.Option(min=0, max=1e9, help="Unload after so many seconds; 0 never.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Replay a trace without loading ahead, with what is asked most, and with the forecast: a dry run without a server.

    The first part of the trace is only history; cold starts are counted in the rest.
    """
    from octavo.serving.autoscaling.commands import parse_size
    from octavo.serving.autoscaling.trace import read_trace
    from octavo.serving.warmup.simulation import Setting, simulate

    setting = Setting(
        memory=round(memory_gib * 1024 * _MIB),
        period=period,
        sizes=dict(parse_size(text) for text in model or []),
        other_size=round(model_mib * _MIB),
        load_seconds=load_seconds,
        probability=probability,
        share=share,
        held_out=held_out,
        unload_idle=unload_idle,
    )
    found = simulate(read_trace(trace), setting)
    if as_json:
        print_json(found.plain())
    else:
        _print(found)


def _missing(client: Client, patterns: list[str]) -> list[str]:
    """Those that no model and no endpoint there is now matches."""
    from octavo.access.permissions import matches

    names = {str(row["name"]) for row in [*client.models(), *client.endpoints()]}
    return [pattern for pattern in patterns if not any(matches(pattern, name) for name in names)]


def _report(settings: Settings, given: dict[str, str]) -> dict[str, Any]:
    """From the running server, whose last seconds are in it, or from the database."""
    client = find_server(settings)
    if client is not None:
        with client:
            return client.warmup_report(**given)
    from octavo.serving.warmup.report import warmup_report
    from octavo.serving.warmup.table import WarmupTable
    from octavo.storage.database import Database

    database = Database(settings.database_url)
    try:
        database.upgrade()
        return warmup_report(WarmupTable(database), given, datetime.now(UTC)).plain()
    finally:
        database.close()


def _print(found: Simulation) -> None:
    titles = ["Loaded ahead", "Requests", "Cold starts", "Saved", "Loads ahead", "Wasted", "Seconds waited"]
    print_table(titles, list(_outcomes(found)))
    typer.echo(f"{found.models} models; counted in the last {found.held_out_periods} of {found.periods} periods")


def _outcomes(found: Simulation) -> Iterator[tuple[str, ...]]:
    for one in found.plain()["outcomes"]:
        numbers = (one["requests"], one["cold"], one["saved"], one["loads"], one["wasted"])
        yield one["guess"], *(str(number) for number in numbers), f"{one['seconds_waited']:.1f}"


def _few(models: list[str]) -> str:
    shown = ", ".join(models[:3])
    return shown if len(models) <= 3 else f"{shown} and {len(models) - 3} more"


def _when(row: dict[str, Any]) -> str:
    if row["predict"]:
        return f"when a request within the hour is at least {row['probability']:.0%} likely"
    return f"{row['cron']} ({row['timezone']}), for {row['keep_minutes']} min"


def _step(step: dict[str, Any]) -> tuple[str, ...]:
    what = step["reason"] or ("load" + (f" in the place of {_few(step['leaving'])}" if step["leaving"] else ""))
    chance = "scheduled" if step["scheduled"] else f"{step['probability']:.2f}"
    return step["key"], chance, f"{step['saving']:.3f}", f"{step['size'] / _MIB:.1f}", what


def _line(line: dict[str, Any]) -> tuple[str, ...]:
    amounts = (str(line["loads"] or ""), str(line["wasted"] or ""), f"{line['load_seconds']:.2f}")
    return line["day"], line["model"], str(line["avoided"]), f"{line['seconds_saved']:.2f}", *amounts
