"""The command-line door of autoscaling.

`octavo autoscaling simulate TRACE.csv` is a dry run that needs no server; `octavo autoscaling status` asks the fleet.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.errors import Invalid
from octavo.printing import print_json, print_table
from octavo.serving.commands import AsJson, Workspace, server

if TYPE_CHECKING:
    from octavo.serving.autoscaling.simulator import Simulation

app = typer.Typer(help="Autoscaling: how many instances a load needs, and a fleet has.", no_args_is_help=True)

_GIB_IN_MIB = 1024
_MAX_MIB = 2**30
_MOST_ROWS = 40


@app.command("simulate")
def simulate_trace(
    trace: Annotated[Path, typer.Argument(help="CSV file: t_s,tenant,model_kind,n_tokens.", show_default=False)],
    policy: Annotated[Path | None, typer.Option(help="YAML file with the policy's fields.", show_default=False)] = None,
    min_capacity: Annotated[int | None, typer.Option(help="Least instances.", show_default="1")] = None,
    max_capacity: Annotated[int | None, typer.Option(help="Most instances.", show_default="10")] = None,
    memory_utilisation: Annotated[float | None, typer.Option(help="Target, percent.", show_default="80")] = None,
    invocations_per_instance: Annotated[
        float | None, typer.Option(help="Target, requests per minute.", show_default="225")
    ] = None,
    scale_out_cooldown: Annotated[float | None, typer.Option(help="Seconds.", show_default="300")] = None,
    scale_in_cooldown: Annotated[float | None, typer.Option(help="Seconds.", show_default="300")] = None,
    disable_scale_in: Annotated[bool, typer.Option("--disable-scale-in", help="Only ever grow.")] = False,
    price: Annotated[float, typer.Option(min=0, max=1e9, help="Money per instance and hour.")] = 1.0,
    memory_gib: Annotated[float, typer.Option(min=0.001, max=1e6, help="An instance's memory for models.")] = 8.0,
    start_up: Annotated[float, typer.Option(min=0, max=86400, help="Seconds until an instance answers.")] = 120.0,
    requests_per_minute: Annotated[int, typer.Option(min=1, help="What an instance answers well.")] = 225,
    model: Annotated[list[str] | None, typer.Option(help="A kind's size: KIND=MiB.", show_default=False)] = None,
    model_mib: Annotated[float, typer.Option(min=0.001, max=_MAX_MIB, help="Size of models of other kinds.")] = 100.0,
    unload_idle: Annotated[
        float | None, typer.Option(min=1, max=1e9, help="Unload models unused so many seconds.", show_default="never")
    ] = None,
    fixed: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Fleet to compare with.", show_default="the peak")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture to draw: a .png, .svg or .pdf file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Replay a trace: what a policy would have run and paid, minute by minute. Options count before the policy file."""
    from octavo.serving.autoscaling.fleet import MIB, InstanceType
    from octavo.serving.autoscaling.picture import check_picture, draw
    from octavo.serving.autoscaling.policy import parse_policy, read_policy
    from octavo.serving.autoscaling.simulator import simulate
    from octavo.serving.autoscaling.trace import read_trace

    if plot is not None:
        check_picture(plot)
    options: dict[str, Any] = {
        "min_capacity": min_capacity,
        "max_capacity": max_capacity,
        "memory_utilisation": memory_utilisation,
        "invocations_per_instance": invocations_per_instance,
        "scale_out_cooldown": scale_out_cooldown,
        "scale_in_cooldown": scale_in_cooldown,
        "disable_scale_in": disable_scale_in or None,
    }
    given = read_policy(policy) if policy else {}
    given |= {name: value for name, value in options.items() if value is not None}
    wanted = parse_policy(given, str(policy or "options"))
    kind = InstanceType(
        memory=round(memory_gib * _GIB_IN_MIB * MIB),
        price=price,
        start_s=start_up,
        per_minute=requests_per_minute,
        sizes=dict(_size(text) for text in model or []),
        other_size=round(model_mib * MIB),
        unload_idle_s=unload_idle,
    )
    found = simulate(read_trace(trace), wanted, kind, fixed)
    if as_json:
        print_json({"policy": wanted.model_dump(), **found.to_json()})
    else:
        _print(found)
    if plot is not None:
        draw(found, wanted, plot)


@app.command("status")
def fleet_status(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """The fleet behind the server (`octavo up --ray`): replicas by node, what each holds, routing, decisions."""
    with server(workspace) as client:
        found = client.fleet()
    if as_json:
        print_json(found)
    else:
        _print_fleet(found)


def _print_fleet(found: dict[str, Any]) -> None:
    rows = [
        (
            one["id"],
            one["node"] or "(waits for a place)",
            one["state"],
            f"{one['charged_bytes'] / 2**20:.0f} of {one['budget_bytes'] / 2**20:.0f}",
            str(len(one["models"])),
            str(one["in_flight"]),
            str(one["answered"]),
        )
        for one in found["replicas"]
    ]
    print_table(["Replica", "Node", "State", "MiB", "Models", "In flight", "Answered"], rows)
    routed, policy = found["routed"], found["policy"]
    ratio = "-" if routed["hit_ratio"] is None else f"{100 * routed['hit_ratio']:.1f} %"
    typer.echo(
        f"\n{len(found['nodes'])} nodes; {found['wanted']} replicas wanted "
        f"({policy['min_capacity']} to {policy['max_capacity']}), {found['lost']} lost so far\n"
        f"{routed['requests']} requests, {ratio} to where their model was; of {routed['nowhere']} it was nowhere, "
        f"{routed['spilled']} went to a further replica as theirs was busy, {routed['resent']} were sent again"
    )
    if found["trouble"]:
        typer.echo(f"last trouble: {found['trouble']}")
    for one in found["decisions"]:
        when = datetime.fromtimestamp(one["at"]).astimezone().isoformat(timespec="seconds")
        typer.echo(f"{when}  {one['before']} -> {one['capacity']}  {one['reason']}")


def _size(text: str) -> tuple[str, int]:
    from octavo.serving.autoscaling.fleet import MIB

    kind, _, size = text.rpartition("=")
    try:
        mib = float(size)
    except ValueError:
        mib = 0.0
    if not kind or not 0 < mib <= _MAX_MIB:
        raise Invalid(f"not a size: {text[:100]!r}", "--model", "Write KIND=MiB, as --model classifier=64.")
    return kind, round(mib * MIB)


def _print(found: Simulation) -> None:
    """Minutes in which something changed, the first and the last, then totals."""
    periods = found.tracked.periods
    changed = [period for period in periods if period.reason]
    shown = [periods[0], *changed[:_MOST_ROWS], periods[-1]]
    rows = [
        (
            f"{period.t_s / 60:.0f}",
            str(period.instances),
            f"{period.memory_utilisation:.1f}",
            f"{period.invocations_per_instance:.1f}",
            str(period.wanted),
            period.reason,
        )
        for period in dict.fromkeys(shown)
    ]
    print_table(["Minute", "Instances", "Memory %", "Requests/min each", "Wanted", "Why"], rows)
    if len(changed) > _MOST_ROWS:
        typer.echo(f"{len(changed) - _MOST_ROWS} changes more; --json has them all")
    total = found.tracked
    typer.echo(
        f"\n{total.requests} requests to {total.models} models in {total.seconds / 3600:.2f} h: "
        f"{total.instance_hours:.2f} instance hours, at most {total.peak} instances at once; "
        f"{total.cold_starts} cold starts, {total.evictions} evictions, "
        f"{total.over_capacity} requests over an instance's capacity\n"
    )
    sums = [
        ("target tracking", "", total.cost, str(total.cold_starts)),
        ("fixed fleet", str(found.fixed_instances), found.fixed.cost, str(found.fixed.cold_starts)),
        ("one instance per model", str(total.models), found.per_model_cost, ""),
    ]
    cells = [(name, count, f"{cost:.2f}", cold) for name, count, cost, cold in sums]
    print_table(["", "Instances", "Cost", "Cold starts"], cells)
