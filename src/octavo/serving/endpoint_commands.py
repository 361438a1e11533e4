"""The command-line door of endpoints: `octavo endpoints ...`, for a running server; a change counts at once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.errors import Invalid
from octavo.printing import print_json, print_table, say
from octavo.serving.commands import AsJson, Workspace, server

if TYPE_CHECKING:
    from octavo.serving.endpoint import Endpoint

app = typer.Typer(help="Endpoints: names that share their traffic between models and versions.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Name of the endpoint, which clients ask as they ask a model.")]

_SHARE = re.compile(r"(?P<name>[^=@:]+)=(?P<model>[^=@:]+)(@(?P<version>[^=@:]+))?(:(?P<weight>[0-9.]+))?")
_FORM = "Write VARIANT=MODEL, VARIANT=MODEL@VERSION or VARIANT=MODEL@VERSION:SHARE, as new=minilm@2:10."


@app.command("ls")
def list_endpoints(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """List the endpoints."""
    with server(workspace) as client:
        rows = client.endpoints()
    if as_json:
        print_json(rows)
    elif not rows:
        typer.echo("there are no endpoints; make one: octavo endpoints set NAME old=MODEL@1:90 new=MODEL@2:10")
    else:
        print_table(["Endpoint", "Variant", "Model", "Version", "Share"], list(_cells(rows)))


@app.command()
def show(name: Name, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Show one endpoint: each variant's share and what it did since the server started."""
    with server(workspace) as client:
        found = client.endpoint(name)
    if as_json:
        print_json(found)
        return
    counts = {one["variant"]: one for one in found["statistics"]}
    titles = ["Variant", "Model", "Version", "Share", "Answers", "Failures", "Mean ms", "p50 ms", "p99 ms", "Agreed"]
    print_table(titles, [(*row[1:], *_did(counts.get(row[1]))) for row in _cells([found])])


@app.command("set")
def set_endpoint(
    name: Name,
    variants: Annotated[list[str], typer.Argument(help=_FORM)],
    shadow: Annotated[list[str] | None, typer.Option(help="A variant that gets copies; SHARE is 0 to 1.")] = None,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Make an endpoint, or change its variants and their shares."""
    from octavo.serving.endpoint import parse_endpoint

    live = [_variant(text) for text in variants]
    copies = [_variant(text) | {"shadow": True} for text in shadow or []]
    wanted = parse_endpoint({"name": name, "variants": [*live, *copies]})
    with server(workspace) as client:
        found = client.set_endpoint(name, wanted.model_dump(mode="json"))
    say(as_json, found, f"{name}: {_sentence(wanted)}")


@app.command()
def rm(name: Name, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Take an endpoint away; its models stay."""
    with server(workspace) as client:
        client.remove_endpoint(name)
    say(as_json, {"name": name, "removed": True}, f"{name} is gone; its models are as they were")


def _variant(text: str) -> dict[str, Any]:
    match = _SHARE.fullmatch(text)
    if match is None:
        raise Invalid(f"not a variant: {text[:100]!r}", "variants", _FORM)
    given = {key: value for key, value in match.groupdict().items() if value}
    try:
        return given | {"weight": float(given.get("weight", 1))}
    except ValueError:
        raise Invalid(f"not a share: {given['weight']!r}", text[:100], _FORM) from None


def _cells(rows: list[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    for row in rows:
        total = sum(one["weight"] for one in row["variants"] if not one["shadow"]) or 1
        for one in row["variants"]:
            share = f"{one['weight']:.0%} copied" if one["shadow"] else f"{one['weight'] / total:.0%}"
            yield row["name"], one["name"], one["model"], one["version"] or "default", share


def _did(counts: dict[str, Any] | None) -> tuple[str, ...]:
    if counts is None:
        return "0", "0", "", "", "", ""
    done = counts["successes"]
    mean = f"{done['seconds'] / done['count'] * 1000:.1f}" if done["count"] else ""
    agreed = f"{counts['agreed']} of {counts['compared']}" if counts["compared"] else ""
    latest = [f"{counts[name] * 1000:.1f}" if counts[name] else "" for name in ("p50", "p99")]
    return str(done["count"]), str(counts["failures"]["count"]), mean, *latest, agreed


def _sentence(endpoint: Endpoint) -> str:
    """Who gets what, in words."""
    total = sum(one.weight for one in endpoint.live) or 1
    parts = [f"{one.weight / total:.0%} to {one.name}" for one in endpoint.live]
    parts += [f"copies of {one.weight:.0%} to {one.name}" for one in endpoint.shadows]
    return ", ".join(parts)
